"""What a gated editor keeps beside the model: tensors that the LM saves, restores and rolls back with its edits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from kedit.lm import LM

PAD = -1  # in labels of different lengths
MASKED = -100  # prompt tokens of a label, as everywhere in the field


@dataclass(frozen=True)
class Store:
    """The tensors of one editor; in a variant of the model (LM.in_variants) those of that variant."""

    lm: LM
    name: str

    def __getitem__(self, part: str) -> Tensor:
        return self.lm.attached[self._key(part)]

    def get(self, part: str) -> Tensor | None:
        return self.lm.attached.get(self._key(part))

    def __contains__(self, part: str) -> bool:
        return self._key(part) in self.lm.attached

    def put(self, **parts: Tensor) -> None:
        """New values: a tensor is replaced, never changed in place."""
        for part, value in parts.items():
            self.lm.attach(self._key(part), value)

    def drop(self, *parts: str) -> None:
        for part in parts:
            self.lm.attach(self._key(part), None)

    @property
    def empty(self) -> bool:
        return not any(name.startswith(self._key("")) for name in self.lm.attached)

    @property
    def edits(self) -> int:
        """How many edits it holds: the number of the next one."""
        return int(self["edits"]) if "edits" in self else 0

    def _key(self, part: str) -> str:
        return f"{self.name}.{part}"


def with_row(rows: Tensor | None, new: Tensor) -> Tensor:
    """[n ...] and one more, `new`; of different lengths (labels), the shorter ones are filled up."""
    if rows is None:
        return new[None].clone()
    new = new[None].to(rows)
    if new.ndim > 1 and new.shape[-1] != rows.shape[-1]:
        width = max(rows.shape[-1], new.shape[-1])
        rows, new = (functional.pad(part, (0, width - part.shape[-1]), value=PAD) for part in (rows, new))
    return torch.cat([rows, new])


def with_entry(values: Tensor, at: int, value: Tensor | float | int) -> Tensor:
    """A copy in which entry `at` is `value`."""
    values = values.clone()
    values[at] = value
    return values


def label(prompt: Sequence[int], answer: Sequence[int], device: torch.device) -> Int[Tensor, " t"]:
    """An edit's answer as the field labels it: the prompt's tokens masked."""
    return torch.tensor([MASKED] * len(prompt) + list(answer), device=device)
