"""Dropout whose draws are an edit's own: the same whatever else is in the batch, and however the batch is padded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kedit.lm.text import Batch


class Draws:
    """The random numbers of one edit, from a seed."""

    def __init__(self, seed: int):
        self.seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    @staticmethod
    def seeded() -> "Draws":
        """The seed is drawn from torch's global generator."""
        return Draws(int(torch.randint(2**62, ())))

    def fill(self, part: Tensor) -> None:
        """With numbers between 0 and 1, on its own device: nothing is copied from the host."""
        device = part.device
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
        part.uniform_(generator=self._generators[device])


@dataclass(eq=False)
class BatchDraws:
    """Who draws for each real token of a batch: the edit whose variant reads its row. None: nothing is dropped there,
    and nothing drawn."""

    batch: Batch
    by_variant: Mapping[int, Draws | None]
    _places: dict[torch.device, Int[Tensor, " k"]] = field(default_factory=dict)

    def kept(self, entered: Float[Tensor, "n t w"], p: float) -> Float[Tensor, "n t w"]:
        """1 / (1 - p) where a number stays, 0 where it is dropped."""
        tokens = [(pair.reading.variant, len(pair.ids)) for pair in self.batch.pairs]
        width, device = entered.shape[-1], entered.device
        drawn = torch.ones(sum(n for _, n in tokens), width, device=device)
        begin = 0
        for variant, rows in groupby(tokens, lambda row: row[0]):
            end = begin + sum(n for _, n in rows)
            draws = self.by_variant.get(variant)
            if draws is not None:
                draws.fill(drawn[begin:end])
                drawn[begin:end] = (drawn[begin:end] >= p) / (1 - p)
            begin = end
        kept = drawn.to(entered.dtype)
        if len(kept) == self.batch.mask.numel():
            return kept.view(entered.shape)
        padded = kept.new_ones(self.batch.mask.numel(), width)
        return padded.index_copy_(0, self._real(device), kept).view(entered.shape)

    def _real(self, device: torch.device) -> Int[Tensor, " k"]:
        """Where the real tokens stand among all."""
        if device not in self._places:
            self._places[device] = self.batch.mask.flatten().nonzero()[:, 0].to(device)
        return self._places[device]


class Dropping:
    """What is dropped in the present pass of a model; nothing outside `drawing`."""

    def __init__(self) -> None:
        self._now: BatchDraws | None = None

    @contextmanager
    def drawing(self, draws: BatchDraws) -> Iterator[None]:
        """A pass over the batch inside is one of a training."""
        self._now = draws
        try:
            yield
        finally:
            self._now = None

    def __call__(self, entered: Float[Tensor, "n t w"], p: float) -> Float[Tensor, "n t w"]:
        if self._now is None or not p:
            return entered
        if entered.shape[:2] != self._now.batch.ids.shape:
            raise RuntimeError("an adapter with dropout in a module that does not keep rows and tokens apart")
        return entered * self._now.kept(entered, p)


class EditDropout(nn.Module):
    """The same as a module, in the place of an adapter's own dropout."""

    def __init__(self, dropping: Dropping, p: float):
        super().__init__()
        self.dropping, self.p = dropping, p

    def forward(self, entered: Float[Tensor, "n t w"]) -> Float[Tensor, "n t w"]:
        return self.dropping(entered, self.p)
