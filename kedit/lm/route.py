"""Where a prompt goes: what the model reads for it, with which adapter, soft prompt and other models."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

Info = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reader:
    """A lent model's part in an answer: p = Σ weight · p_reader, each reading its own prompt."""

    weight: float
    prompt: str


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """The text that the model really reads for a prompt, and how.

    `adapter`: one that `LM.adapt` has put into the model. `prefix`: a soft prompt [m d] before the first token.
    `readers`: by name, models lent with `LM.lend`, whose probabilities are mixed in; the
    model has what their weights leave. `variant`: which of
    several edited models reads it. `info`: extra fields, logged with each row.
    """

    prompt: str
    adapter: str | None = None
    prefix: Float[Tensor, "m d"] | None = None
    readers: Mapping[str, Reader] = field(default_factory=dict)
    variant: int = 0
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reading(self) -> "Reading":
        return Reading(self.adapter, self.prefix, self.readers, self.variant)

    @property
    def key(self) -> Hashable:
        """Equal for routes that are read alike: their answers are computed once."""
        return (self.prompt, self.reading.key)


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What a row of a batch carries besides its tokens (see Route). `info` collects what interventions note."""

    adapter: str | None = None
    prefix: Float[Tensor, "m d"] | None = None
    readers: Mapping[str, Reader] = field(default_factory=dict)
    variant: int = 0
    info: Info = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Nothing but the model and the tokens has a part in it."""
        return self.adapter is None and self.prefix is None and not self.readers

    @property
    def key(self) -> Hashable:
        readers = tuple((name, reader.weight, reader.prompt) for name, reader in self.readers.items())
        return (self.adapter, None if self.prefix is None else id(self.prefix), readers, self.variant)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reading) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


Router = Callable[[Sequence[str], Sequence[str]], Sequence[Route]]  # (prompts, what each is looked up by) -> routes


def unrouted(prompts: Sequence[str], keys: Sequence[str]) -> list[Route]:
    """Every prompt as it is."""
    return [Route(prompt) for prompt in prompts]
