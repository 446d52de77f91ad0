"""Wordings from an OpenAI-compatible endpoint."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kedit.common.chat_endpoint import ChatEndpoint
from kedit.editors.incontext.augmentation import qa
from kedit.editors.incontext.augmentation.language_model import PARAPHRASES, Keep, LanguageModelAugmentation, Request

log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class Endpoint(ChatEndpoint, LanguageModelAugmentation):
    """Options: those of ChatEndpoint and of LanguageModelAugmentation."""

    @property
    def option(self) -> str:
        return "editor.augmentation"

    def missing_inputs(self) -> Iterator[str]:
        """A sentence if there is no key to ask with and no reply is kept."""
        if not self.secret() and not self.replies:
            yield self.no_key()

    def announce(self, missing: Sequence[Request], total: int) -> None:
        characters = sum(len(request.prompt) for request in missing), sum(map(_length, missing))
        log.info(self.estimate(f"{len(missing)} of {total} replies of {self.model} are missing", *characters))

    def ask(self, requests: Sequence[Request], keep: Keep) -> None:
        self.send([request.prompt for request in requests], lambda i, reply: keep(requests[i], reply))


def _length(request: Request) -> int:
    """Characters of the reply, about."""
    return len(qa(request.edit).text) * (PARAPHRASES if request.kind == "paraphrased" else 1)
