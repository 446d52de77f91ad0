"""Running statistics of rows, merged over batches and over processes."""

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from jaxtyping import Float
from torch import Tensor, nn

EPSILON = 1e-7  # MEND nn


class Normaliser(nn.Module):
    """Rows to mean 0 and standard deviation 1 of all rows observed so far (MEND, arXiv 2110.11309, App. C); the
    identity while fewer than two have been."""

    n: Tensor
    mean: Tensor
    squares: Tensor  # Σ (x - mean)²

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("n", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squares", torch.zeros(width))

    @torch.no_grad()
    def observe(self, rows: Float[Tensor, "r w"]) -> None:
        """Fold in these rows, and those of the other processes (Chan et al. 1983: exact in any grouping)."""
        count = _over_processes(self.n.new_tensor([float(len(rows))]))
        if not count:
            return
        mean = _over_processes(rows.sum(0)) / count
        squares = _over_processes((rows - mean).square().sum(0))
        total, apart = self.n + count, mean - self.mean
        self.squares += squares + apart.square() * (self.n * count / total)
        self.mean += apart * (count / total)
        self.n.copy_(total)

    def forward(self, rows: Float[Tensor, "r w"]) -> Float[Tensor, "r w"]:
        if self.n < 2:
            return rows
        deviation = (self.squares / (self.n - 1)).sqrt()
        return (rows - self.mean) / (deviation + EPSILON)


def _over_processes(value: Tensor) -> Tensor:
    return reduce(value, "sum") if PartialState._shared_state and PartialState().num_processes > 1 else value
