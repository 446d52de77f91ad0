"""Altered input embeddings: what is added to the embeddings of a known token sequence wherever a prompt holds it.

No weight changes. A prompt is searched when it is read: in scoring, and in the first pass of a continuation, whose
later passes read keys and values that already know of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kedit.lm.hooks import hook

TokenKey = tuple[int, ...]  # a token sequence


class EmbeddingDeltas:
    """The known sequences, each with what is added to its tokens, and the hook that adds it."""

    def __init__(self, model: nn.Module):
        self.module: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
        self.name = next(name for name, module in model.named_modules() if module is self.module) + ".weight"
        self.everywhere = False  # search answers, too
        self.known: Mapping[TokenKey, Float[Tensor, "_ d"]] = {}
        self._handle: Any = None
        self._within: Bool[Tensor, "n t"] | None = None  # where a pass may hold a sequence; None: nobody said
        self._disabled = False

    @property
    def active(self) -> bool:
        return self._handle is not None

    def set(self, known: Mapping[TokenKey, Float[Tensor, "_ d"]], everywhere: bool = False) -> None:
        self.known, self.everywhere = dict(known), everywhere
        self._lengths = lengths(self.known)
        if self._handle is None:
            self._handle = self.module.register_forward_hook(self._alter)

    def clear(self) -> None:
        """The model's own embeddings again."""
        if self._handle is not None:
            self._handle.remove()
        self.known, self._handle = {}, None

    @contextmanager
    def within(self, places: Bool[Tensor, "n t"]) -> Iterator[None]:
        """A pass inside is searched at these places only. Elsewhere all of it is, unless it reads a single token, as
        the later passes of a continuation do."""
        before, self._within = self._within, places
        try:
            yield
        finally:
            self._within = before

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """A pass inside has the model's own embeddings."""
        before, self._disabled = self._disabled, True
        try:
            yield
        finally:
            self._disabled = before

    @contextmanager
    def adding(self, row: Int[Tensor, " m"], col: Int[Tensor, " m"], values: Float[Tensor, "m d"]) -> Iterator[None]:
        """In a pass inside these values are added to the embeddings at these places, instead of what is known."""

        def add(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            return _added(output, row, col, values)

        with self.disabled(), hook(self.module.register_forward_hook(add)):
            yield

    def _alter(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        ids: Tensor = args[0]
        if self._disabled or ids.ndim != 2 or (self._within is None and ids.shape[1] < 2):
            return None
        places = torch.ones_like(ids, dtype=torch.bool) if self._within is None else self._within
        rows: list[int] = []
        cols: list[int] = []
        deltas = []
        for i, (tokens, real) in enumerate(zip(ids.tolist(), places.tolist(), strict=True)):
            first = real.index(True) if True in real else 0
            at, key = longest(tokens[first : first + sum(real)], self.known, self._lengths)
            if key:
                rows += [i] * len(key)
                cols += range(first + at, first + at + len(key))
                deltas.append(self.known[key])
        if not deltas:
            return None
        return _added(output, torch.tensor(rows), torch.tensor(cols), torch.cat(deltas))


def _added(output: Tensor, row: Tensor, col: Tensor, values: Tensor) -> Tensor:
    return output.index_put((row.to(output.device), col.to(output.device)), values.to(output), accumulate=True)


def lengths(keys: Mapping[TokenKey, Any] | Sequence[TokenKey]) -> dict[int, list[int]]:
    """By their first token: how long the sequences are that begin with it, the longest first."""
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
