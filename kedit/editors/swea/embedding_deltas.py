"""Deltas on input embeddings: added to the embeddings of known token sequences wherever a prompt holds one.

No weight changes. A prompt is searched when it is read: in scoring, and in the first pass of a generation, whose later
passes read keys and values that already depend on it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kedit.lm import Pass

TokenKey = tuple[int, ...]  # a token sequence


class EmbeddingDeltas:
    """The known sequences, each with what is added to its tokens: an intervention on the input embeddings.

    If several match, the longest one wins. `everywhere`: answers are searched, too.
    """

    def __init__(self, everywhere: bool = False):
        self.everywhere = everywhere
        self.known: Mapping[TokenKey, Float[Tensor, "_ d"]] = {}

    def set(self, known: Mapping[TokenKey, Float[Tensor, "_ d"]]) -> None:
        self.known = dict(known)
        self._lengths = lengths(self.known)

    def __call__(self, this: Pass, ids: Int[Tensor, "n t"], output: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        if this.continues or not self.known:
            return output
        searched = this.real if self.everywhere else this.prompt
        rows: list[int] = []
        cols: list[int] = []
        deltas = []
        for i, (tokens, real) in enumerate(zip(ids.tolist(), searched.tolist(), strict=True)):
            first = real.index(True) if True in real else 0
            at, key = longest(tokens[first : first + sum(real)], self.known, self._lengths)
            if key:
                rows += [i] * len(key)
                cols += range(first + at, first + at + len(key))
                deltas.append(self.known[key])
        return added(output, torch.tensor(rows), torch.tensor(cols), torch.cat(deltas)) if deltas else output


def adding(
    row: Int[Tensor, " m"], col: Int[Tensor, " m"], values: Float[Tensor, "m d"]
) -> Callable[[Pass, Tensor, Tensor], Tensor]:
    """An intervention on the input embeddings that adds these values at these places."""
    return lambda this, ids, output: added(output, row, col, values)


def added(output: Tensor, row: Tensor, col: Tensor, values: Tensor) -> Tensor:
    return output.index_put((row.to(output.device), col.to(output.device)), values.to(output), accumulate=True)


def lengths(keys: Mapping[TokenKey, Any] | Sequence[TokenKey]) -> dict[int, list[int]]:
    """By their first token: the lengths of the sequences that begin with it, the longest first."""
    found: dict[int, set[int]] = {}
    for key in keys:
        found.setdefault(key[0], set()).add(len(key))
    return {token: sorted(some, reverse=True) for token, some in found.items()}


def longest(
    tokens: Sequence[int], keys: Mapping[TokenKey, Any] | Sequence[TokenKey], by_first: Mapping[int, Sequence[int]]
) -> tuple[int, TokenKey]:
    """The longest of `keys` (see `lengths`) that stands in `tokens`, and where, the first of several; () for none."""
    best: tuple[int, TokenKey] = (0, ())
    for at, token in enumerate(tokens):
        for length in by_first.get(token, ()):
            key = tuple(tokens[at : at + length])
            if len(key) == length > len(best[1]) and key in keys:
                best = (at, key)
                break
    return best
