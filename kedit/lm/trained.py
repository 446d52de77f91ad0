"""The parameters that edits train: float32 masters of those in lower precision, and the values that an edit found."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

LOW = (torch.bfloat16, torch.float16)  # precisions in which most of an optimiser's steps are lost


class Trained:
    """Parameters of the model (or of one variant of it), and for each the leaf that an optimiser steps: the parameter
    itself, or its float32 master, to which gradients are handed over and from which the parameter is written.

    In bfloat16 most of Adam's steps are lost on the weights (they are smaller than the distance of two numbers); on a
    master that lives for the whole run they add up.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], masters: Mapping[str, Tensor] | None = None):
        self.names, self.parameters, masters = list(parameters), list(parameters.values()), masters or {}
        self.leaves = [nn.Parameter(masters[n]) if n in masters else p for n, p in parameters.items()]
        self._copied = [(p, leaf) for p, leaf in zip(self.parameters, self.leaves, strict=True) if leaf is not p]
        low = [p for p in self.parameters if p.dtype in LOW]
        self._low = [(p, p.detach().clone()) for p in low]

    def hand_over(self) -> None:
        """Gradients to the leaves, after a backward pass."""
        for parameter, leaf in self._copied:
            leaf.grad = None if parameter.grad is None else parameter.grad.to(leaf.dtype)
            parameter.grad = None

    def forget_gradients(self) -> None:
        """The next step of an optimiser leaves these parameters as they are."""
        for leaf in (*self.parameters, *self.leaves):
            leaf.grad = None

    @torch.no_grad()
    def write(self) -> None:
        """The leaves to the parameters, after they have changed."""
        for parameter, leaf in self._copied:
            parameter.copy_(leaf)

    @torch.no_grad()
    def moved_share(self) -> float | None:
        """Which share of the entries of low-precision parameters differs from before; None if there are none."""
        if not self._low:
            return None
        return sum(int((p != before).sum()) for p, before in self._low) / sum(p.numel() for p, _ in self._low)

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Inside, the parameters, and no others, receive gradients; nothing of it is left behind."""
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in self.parameters:
                parameter.requires_grad_(False)
                parameter.grad = None


@runtime_checkable
class Start(Protocol):
    """The weights that an edit, or each of several, started from. They serve as a reference model without a second
    model."""

    kept: dict[object, float]  # what a loss has computed with them, by example

    @property
    def moved(self) -> bool:
        """Has a step been taken since?"""

    def weights(self) -> AbstractContextManager[None]:
        """Inside, the model has these weights."""


class StartWeights:
    """The values that trained parameters had when the edit began, kept if something will ask for them."""

    def __init__(self, trained: Trained, keep: bool):
        self.trained = trained
        self.values = [leaf.detach().clone() for leaf in trained.leaves] if keep else []
        self.moved = False
        self.kept: dict[object, float] = {}  # what a loss has computed with them, by example

    @contextmanager
    def weights(self) -> Iterator[None]:
        """They trade places with the present ones, nothing is copied."""
        if not self.moved:
            yield
            return
        parameters = self.trained.parameters
        now = [p.data for p in parameters]
        for p, value in zip(parameters, self.values, strict=True):
            p.data = value.to(p.dtype)
        try:
            yield
        finally:
            for p, data in zip(parameters, now, strict=True):
                p.data = data

    @torch.no_grad()
    def clamp(self, reach: float) -> None:
        """Keep each weight within ± `reach` of its value here."""
        for leaf, value in zip(self.trained.leaves, self.values, strict=True):
            leaf.clamp_(value - reach, value + reach)
        self.trained.write()

    @torch.no_grad()
    def scale_delta(self, times: int) -> None:
        """w0 + Δ becomes w0 + times · Δ."""
        for leaf, value in zip(self.trained.leaves, self.values, strict=True):
            leaf.add_(leaf - value, alpha=times - 1)
        self.trained.write()


class StartOfAll:
    """The weights that several edits started from, each its own."""

    def __init__(self, starts: Sequence[StartWeights]):
        self.starts = starts
        self.kept: dict[object, float] = {}  # nothing: each edit's weights are its own

    @property
    def moved(self) -> bool:
        return any(start.moved for start in self.starts)

    @contextmanager
    def weights(self) -> Iterator[None]:
        with ExitStack() as stack:
            for start in self.starts:
                stack.enter_context(start.weights())
            yield


def nothing_trained() -> StartWeights:
    """For losses that are computed outside a training."""
    return StartWeights(Trained({}), keep=False)
