"""Low-rank changes of a matrix, one of each variant of a model (kedit.lm.variants): they share the product with the
matrix itself and add two small ones."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kedit.lm.dropout import Dropping


class Stack:
    """A tensor [n, ...] of n variants, and views of it that can be trained apart."""

    def __init__(self, stack: Tensor):
        self.stack = stack
        self.parts = [nn.Parameter(part, requires_grad=False) for part in stack]

    @property
    def is_whole(self) -> bool:
        """Does no part have other values for a while?"""
        return all(p.data_ptr() == s.data_ptr() for p, s in zip(self.parts, self.stack, strict=True))

    def whole(self) -> Tensor:
        """All parts as one tensor, which receives their gradients."""
        if not self.is_whole:
            return torch.stack([part.data for part in self.parts])
        return self.stack.requires_grad_(any(part.requires_grad for part in self.parts))

    def hand_over_gradient(self) -> None:
        """The stack's, to its parts."""
        if self.stack.grad is not None:
            for part, gradient in zip(self.parts, self.stack.grad, strict=True):
                part.grad = gradient
        self.stack.grad = None
        self.stack.requires_grad_(False)


class LowRank:
    """The matrix of n variants: x -> x Wᵀ + scale · (dropout(x) Aᵀ) Bᵀ. B is zero in variants that have no change."""

    def __init__(
        self,
        matrix: nn.Module,
        n: int,
        widths: tuple[int, int],
        rank: int,
        scale: float,
        dropout: float,
        dtype: torch.dtype,
    ):
        entered, left = widths
        weight: Tensor = matrix.weight  # type: ignore[assignment]
        self.scale, self.dropout = scale, dropout
        self.a = Stack(weight.new_zeros(n, rank, entered, dtype=dtype))
        self.b = Stack(weight.new_zeros(n, left, rank, dtype=dtype))
        self.users: set[int] = set()  # variants that have a change

    def added(
        self,
        entered: Float[Tensor, "n t i"],
        places: Sequence[int],
        index: Int[Tensor, " n"],
        dropping: Dropping,
    ) -> Float[Tensor, "n t o"]:
        """What is added to the matrix's product. `places`: the variant of each row, sorted; `index`: the same on the
        device. The factors are small: where rows are not spread evenly, each row gets its own copy."""
        a, b = self.a.whole(), self.b.whole()
        rows = len(places) // len(a)
        if list(places) != [variant for variant in range(len(a)) for _ in range(rows)]:
            a, b = a[index.to(a.device)], b[index.to(b.device)]
        small = batched(dropping(entered.to(a.dtype), self.dropout), a.transpose(1, 2))
        return (self.scale * batched(small, b.transpose(1, 2))).to(entered.dtype)

    @torch.no_grad()
    def change(self, variant: int) -> Float[Tensor, "o i"]:
        """A and B of the matrix in one variant."""
        return self.scale * (self.b.parts[variant] @ self.a.parts[variant])


def batched(entered: Float[Tensor, "n t i"], matrices: Float[Tensor, "b i o"]) -> Float[Tensor, "n t o"]:
    """Equally many consecutive rows for each matrix, in one product."""
    n, t, width = entered.shape
    return torch.bmm(entered.reshape(len(matrices), -1, width), matrices).reshape(n, t, -1)
