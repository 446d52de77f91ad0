"""A transformers model on this machine that answers prompts: it is loaded when the first one has no reply yet."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kedit.common.hub import why_no_model
from kedit.common.options import Count, DeviceMap, Dtype, Name, PathText
from kedit.common.progress import progress
from kedit.lm.loading import identity_of, load

if TYPE_CHECKING:
    from kedit.lm.model import LM

SAVED = 64  # replies that are written together


@dataclass(kw_only=True, eq=False)
class LocalChat:
    """Greedy replies of the model in `path` (a folder or hub id), in its tokenizer's chat template if it has one."""

    path: PathText
    revision: Name
    dtype: Dtype
    device_map: DeviceMap | dict[str, Any]
    trust_remote_code: bool
    token_budget: Count | None
    max_new_tokens: Count
    _lm: "LM | None" = field(default=None, init=False, repr=False)

    def asked(self) -> Mapping[str, Any]:
        """All that a reply depends on besides the prompt."""
        identity = identity_of(self.path, revision=self.revision, trust_remote_code=self.trust_remote_code)
        return {"model": identity, "dtype": self.dtype, "max_new_tokens": self.max_new_tokens}

    def missing_model(self, option: str) -> str:
        """A sentence if the model cannot be had, else "". `option`: where its options stand."""
        why = why_no_model(self.path, self.revision)
        return why and f"{option}.path={self.path}: this model cannot be had ({why}); give another one"

    def replies_to(self, prompts: Sequence[str]) -> Iterator[str]:
        """A reply to each prompt, in order."""
        lm = self._lm = self._lm or self._load()
        read = [lm.text.chat(prompt) if lm.text.chats else prompt for prompt in prompts]
        lm.check_length(max(map(len, lm.text.prompts(read))) + self.max_new_tokens)
        for begin in progress(range(0, len(read), SAVED), desc=f"asking {self.path}"):
            yield from (said.text for said in lm.generate(read[begin : begin + SAVED], self.max_new_tokens))

    def _load(self) -> "LM":
        return load(
            self.path,
            revision=self.revision,
            dtype=self.dtype,
            device_map=self.device_map,
            trust_remote_code=self.trust_remote_code,
            token_budget=self.token_budget,
        )
