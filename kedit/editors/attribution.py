"""Integrated gradients: how much of a token's probability is attributed to each number of a vector inside the model.

Attr(w) = w ∘ 1/m Σ_k ∂P(token | the vector is a_k·w) / ∂(a_k·w) over m points a_k (Dai et al. 2022, arXiv 2104.08696,
§3.1). Rows of all points, vectors and contexts share passes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kedit.lm.hooks import hook
from kedit.lm.text import Batch, Pair

if TYPE_CHECKING:
    from kedit.lm.model import LM

OnActivation = Callable[[Float[Tensor, "n t w"], Int[Tensor, " p"], Int[Tensor, " p"], list[int]], Tensor | None]


@dataclass(frozen=True, slots=True)
class HookPoint:
    """A vector of a pass: what enters a module, or what it puts out, at one token of a context."""

    module: nn.Module
    at: int
    output: bool = False


def points(m: int, from_zero: bool = False) -> list[float]:
    """1/m, 2/m, ..., 1, as the paper sums; or m points from 0 to 1 (one point: 0)."""
    return torch.linspace(0, 1, m).tolist() if from_zero else [k / m for k in range(1, m + 1)]


def asked(pair: Pair, extend: bool = True) -> list[Pair]:
    """The answer's tokens one by one, each behind those before it, or all of them behind the bare prompt."""
    places = range(pair.start, len(pair.ids))
    return [
        Pair([*(pair.ids[:i] if extend else pair.prompt), pair.ids[i]], i if extend else pair.start) for i in places
    ]


def integrated_gradients(
    lm: "LM", pairs: Sequence[Pair], sites: Sequence[Sequence[HookPoint]], at: Sequence[float]
) -> list[tuple[Float[Tensor, "_ w"], Float[Tensor, "_ w"]]]:
    """For each pair, whose answer is one token: the attribution of that token to the vectors at its sites, each varied
    alone, from a gradient at each of the points `at`; and the vectors."""
    units = [(i, site) for i, of_pair in enumerate(sites) for site in of_pair]
    values = _values(lm, pairs, units)
    rows = [(unit, point) for unit in range(len(units)) for point in at]
    summed = torch.zeros_like(values)

    def run(now: list[int]) -> list[bool]:
        some = [rows[i] for i in now]
        batch = lm.batch([pairs[units[unit][0]] for unit, _ in some])
        which = torch.tensor([unit for unit, _ in some], device=values.device)
        scaled = values[which] * torch.tensor([[point] for _, point in some], device=values.device)
        places = [(row, units[unit][1]) for row, (unit, _) in enumerate(some)]
        summed.index_add_(0, which, _gradients(lm, batch, places, scaled))
        return [True] * len(now)

    lm.batched([len(pairs[units[unit][0]].ids) for unit, _ in rows], run)
    sizes = [len(of_pair) for of_pair in sites]
    return list(zip((values * summed / len(at)).split(sizes), values.split(sizes), strict=True))


def _gradients(
    lm: "LM", batch: Batch, places: Sequence[tuple[int, HookPoint]], values: Float[Tensor, "n w"]
) -> Float[Tensor, "n w"]:
    """The gradients of each row's answer probability, with one vector of the row replaced by these values."""
    values.requires_grad_(True)

    def replace(hidden: Tensor, row: Tensor, col: Tensor, which: list[int]) -> Tensor:
        return hidden.index_put((row, col), values[which].to(hidden))

    with torch.enable_grad(), _meeting(batch, places, replace):
        probabilities = lm.answer_logits(batch).float().softmax(-1).gather(-1, batch.gold[:, None])
        [gradients] = torch.autograd.grad(probabilities.sum(), values)
    return gradients


@torch.no_grad()
def _values(lm: "LM", pairs: Sequence[Pair], units: Sequence[tuple[int, HookPoint]]) -> Float[Tensor, "u w"]:
    """The vectors as they are."""
    found: dict[int, Tensor] = {}
    of_pair: dict[int, list[int]] = {i: [] for i in range(len(pairs))}
    for unit, (i, _) in enumerate(units):
        of_pair[i].append(unit)

    def run(now: list[int]) -> list[bool]:
        batch = lm.batch([pairs[i] for i in now])
        held = [(row, unit) for row, i in enumerate(now) for unit in of_pair[i]]

        def keep(hidden: Tensor, row: Tensor, col: Tensor, which: list[int]) -> None:
            found.update(zip([held[j][1] for j in which], hidden[row, col].float().to(lm.device), strict=True))

        with _meeting(batch, [(row, units[unit][1]) for row, unit in held], keep):
            lm.answer_logits(batch)
        return [True] * len(now)

    lm.batched([len(pair.ids) for pair in pairs], run)
    return torch.stack([found[unit] for unit in range(len(units))])


@contextmanager
def _meeting(batch: Batch, places: Sequence[tuple[int, HookPoint]], meet: OnActivation) -> Iterator[None]:
    """In a pass inside, `meet` is shown what each module holds, with the rows and columns of its places and which ones
    they are; what it returns is used instead."""
    grouped: dict[tuple[nn.Module, bool], list[int]] = {}
    for i, (_, site) in enumerate(places):
        grouped.setdefault((site.module, site.output), []).append(i)
    with ExitStack() as hooks:
        for (module, output), which in grouped.items():
            row = torch.tensor([places[i][0] for i in which], device=batch.ids.device)
            col = batch.first[row] + torch.tensor([places[i][1].at for i in which], device=batch.ids.device)
            hooks.enter_context(hook(_register(module, output, meet, row, col, which)))
        yield


def _register(module: nn.Module, output: bool, meet: OnActivation, row: Tensor, col: Tensor, which: list[int]) -> Any:
    def entering(_: nn.Module, args: tuple) -> tuple | None:
        made = meet(args[0], row.to(args[0].device), col.to(args[0].device), which)
        return None if made is None else (made, *args[1:])

    def leaving(_: nn.Module, args: tuple, out: Tensor) -> Tensor | None:
        return meet(out, row.to(out.device), col.to(out.device), which)

    return module.register_forward_hook(leaving) if output else module.register_forward_pre_hook(entering)
