"""Running mean and deviation of rows: a state of fixed size, however many rows it has seen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

EPSILON = 1e-7  # added to a deviation (XiaojieGu/UltraEdit@0beb222, nets.py; MEND has the same)
Merge = Literal["exact", "released"]


@dataclass(frozen=True, slots=True, eq=False)
class RowStatistics:
    """`n` rows, their mean, and the sum of their squared distances from it. Never changed in place."""

    n: Int[Tensor, ""]
    mean: Float[Tensor, " w"]
    squares: Float[Tensor, " w"]

    @classmethod
    def of_width(cls, width: int, device: torch.device) -> "RowStatistics":
        zeros = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(torch.zeros((), dtype=torch.int64, device=device), zeros, zeros)

    def with_rows(self, rows: Float[Tensor, "r w"], merge: Merge) -> "RowStatistics":
        """With these rows too, by Chan et al. (1983): exact in any grouping.

        "released": as UltraEdit's code has it, where the variance within `rows` is the unbiased one, so that r rows
        count r/(r-1) times: the deviation is too large by sqrt((r+1)/r), e.g. 22 % if rows come in twos. Raises
        FloatingPointError for a single row, which has no unbiased variance.
        """
        k = len(rows)
        if not k:
            return self
        if merge == "released" and k == 1:
            raise FloatingPointError(
                "merge=released has no variance of one row, and this batch has one answer token; give a larger "
                "editor.backward_batch, or editor.merge=exact"
            )
        rows = rows.to(self.mean)
        total, apart = self.n + k, rows.mean(0) - self.mean
        within = k * rows.var(0, correction=int(merge == "released"))
        squares = self.squares + within + apart.square() * (self.n * k / total)
        return RowStatistics(total, self.mean + apart * (k / total), squares)

    def normalised(self, rows: Float[Tensor, "r w"]) -> Float[Tensor, "r w"]:
        """Rows less the mean, over the deviation (n - 1 in its denominator). Of fewer than two rows nothing is known:
        they are left as they are."""
        if int(self.n) < 2:
            return rows
        deviation = (self.squares / (self.n - 1)).sqrt().to(rows)
        return (rows - self.mean.to(rows)) / (deviation + EPSILON)

    def state(self, name: str) -> dict[str, Tensor]:
        return {f"{name}.n": self.n, f"{name}.mean": self.mean, f"{name}.squares": self.squares}

    @classmethod
    def from_state(cls, name: str, state: Mapping[str, Tensor], device: torch.device) -> "RowStatistics":
        return cls(*(state[f"{name}.{part}"].to(device) for part in ("n", "mean", "squares")))
