"""Wordings from a transformers model on this machine."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kedit.editors.incontext.augmentation.language_model import Keep, LanguageModelAugmentation, Request
from kedit.lm.local_chat import LocalChat

log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class LocalModel(LocalChat, LanguageModelAugmentation):
    """Options: those of LocalChat and of LanguageModelAugmentation.

    The model is in memory only while something is asked: edits whose replies are kept do not load it.
    """

    def missing_inputs(self) -> Iterator[str]:
        """A sentence if the model cannot be had."""
        if sentence := self.missing_model("editor.augmentation"):
            yield sentence

    def announce(self, missing: Sequence[Request], total: int) -> None:
        log.info("%d of %d replies of %s are missing", len(missing), total, self.path)

    def ask(self, requests: Sequence[Request], keep: Keep) -> None:
        replies = self.replies_to([request.prompt for request in requests])
        for request, reply in zip(requests, replies, strict=True):
            keep(request, reply)

    def finish(self) -> None:
        self._lm = None
