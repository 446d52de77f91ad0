"""Wordings from a transformers model on this machine."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kedit.common.hub import why_no_model
from kedit.common.options import Count, DeviceMap, Dtype, Name, PathText
from kedit.common.progress import progress
from kedit.editors.incontext.augmentation.language_model import Keep, LanguageModelAugmentation, Request
from kedit.lm import LM, load
from kedit.lm.loading import identity_of

log = logging.getLogger(__name__)
SAVED = 64  # replies that are written together


@dataclass(kw_only=True, eq=False)
class LocalModel(LanguageModelAugmentation):
    """Greedy replies of the model in `path` (a folder or hub id), in its tokenizer's chat template where it has one.

    It is in memory only while something is asked: edits whose replies are kept do not load it.
    """

    path: PathText
    revision: Name
    dtype: Dtype
    device_map: DeviceMap | dict[str, Any]
    trust_remote_code: bool
    token_budget: Count | None
    max_new_tokens: Count
    _lm: LM | None = field(default=None, init=False)

    def asked(self) -> Mapping[str, Any]:
        identity = identity_of(self.path, revision=self.revision, trust_remote_code=self.trust_remote_code)
        return {"model": identity, "dtype": self.dtype, "max_new_tokens": self.max_new_tokens}

    def missing_inputs(self) -> Iterator[str]:
        """A sentence if the model cannot be had."""
        if why := why_no_model(self.path, self.revision):
            yield f"editor.augmentation.path={self.path}: this model cannot be had ({why}); give another one"

    def announce(self, missing: Sequence[Request], total: int) -> None:
        log.info("%d of %d replies of %s are missing", len(missing), total, self.path)

    def ask(self, requests: Sequence[Request], keep: Keep) -> None:
        self._lm = self._lm or self._load()
        text = self._lm.text
        prompts = [text.chat(r.prompt) if text.chats else r.prompt for r in requests]
        self._lm.check_length(max(map(len, text.prompts(prompts))) + self.max_new_tokens)
        for begin in progress(range(0, len(prompts), SAVED), desc=f"asking {self.path}"):
            now = slice(begin, begin + SAVED)
            for request, generated in zip(
                requests[now], self._lm.generate(prompts[now], self.max_new_tokens), strict=True
            ):
                keep(request, generated.text)

    def finish(self) -> None:
        self._lm = None

    def _load(self) -> LM:
        return load(
            self.path,
            revision=self.revision,
            dtype=self.dtype,
            device_map=self.device_map,
            trust_remote_code=self.trust_remote_code,
            token_budget=self.token_budget,
        )
