"""The weights that an edit started from: a reference model without a second model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


class StartWeights:
    """The values that trained parameters had when the edit began, kept where something will ask for them."""

    def __init__(self, parameters: Sequence[nn.Parameter], keep: bool):
        self.parameters = parameters
        self.values = [p.detach().clone() for p in parameters] if keep else []
        self.moved = False

    @contextmanager
    def weights(self) -> Iterator[None]:
        """Inside, the parameters have these values: they trade places, nothing is copied."""
        if not self.moved:
            yield
            return
        now = [p.data for p in self.parameters]
        for p, value in zip(self.parameters, self.values, strict=True):
            p.data = value
        try:
            yield
        finally:
            for p, data in zip(self.parameters, now, strict=True):
                p.data = data

    @torch.no_grad()
    def clamp(self, reach: float) -> None:
        """Keep each weight within ± `reach` of its value here."""
        for p, value in zip(self.parameters, self.values, strict=True):
            p.clamp_(value - reach, value + reach)

    @torch.no_grad()
    def scale_delta(self, times: int) -> None:
        """w0 + Δ becomes w0 + times · Δ."""
        for p, value in zip(self.parameters, self.values, strict=True):
            p.add_(p - value, alpha=times - 1)
