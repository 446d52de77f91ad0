"""WISE's side memories: other weights for one matrix, and the gate that decides which rows read one of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge, prune
from torch import Tensor, nn

from kedit.editors.gated.gate import Verdict
from kedit.editors.gated.store import Store, with_row
from kedit.lm import LM, Pass
from kedit.lm.matrices import activation, product

DistanceOver = Literal["prompt", "all"]
DecidedFor = Literal["row", "batch"]


@dataclass(frozen=True, slots=True, eq=False)
class SideMemory:
    """Weights in the place of the matrix's own, read from a distance of `threshold` on; None: it has no edit yet."""

    weight: Float[Tensor, "_ _"]
    threshold: float | None


def memories(store: Store, ratio: float) -> list[SideMemory]:
    """The one that is trained, then those that are saved, the oldest first."""
    if "side" not in store:
        return []
    saved = store.get("saved_least")
    least = [store.get("least"), *([] if saved is None else saved.tolist())]
    weights = [store["side"], *(store[f"saved.{i}"] for i in range(len(least) - 1))]
    return [
        SideMemory(weight, None if value is None else ratio * float(value))
        for weight, value in zip(weights, least, strict=True)
    ]


def save_side(store: Store, original: Tensor) -> None:
    """The memory that is trained is kept, and a fresh one takes its place."""
    saved = store.get("saved_least")
    store.put(**{f"saved.{0 if saved is None else len(saved)}": store["side"]})
    store.put(saved_least=with_row(saved, store["least"]), side=original.clone())
    store.drop("least")


def merge_saved(store: Store, original: Tensor, last: int, density: float, weights: Sequence[float]) -> None:
    """The `last` saved memories become one, which is read from the smallest of their distances on."""
    least = store["saved_least"]
    first = len(least) - last
    merged = ties([store[f"saved.{i}"] for i in range(first, len(least))], original, density, weights)
    store.drop(*(f"saved.{i}" for i in range(first, len(least))))
    store.put(**{f"saved.{first}": merged}, saved_least=torch.cat([least[:first], least[first:].min()[None]]))


@torch.no_grad()
def ties(edited: Sequence[Tensor], original: Tensor, density: float, weights: Sequence[float]) -> Float[Tensor, "_ _"]:
    """TIES merging (arXiv 2306.01708): of each change the largest `density` of the entries, the sign that most of them
    have, and the weighted mean of those of that sign."""
    changes = torch.stack([prune(one - original, density, method="magnitude") for one in edited])
    share = torch.tensor(list(weights), device=original.device, dtype=original.dtype)[:, None, None].expand_as(changes)
    agreeing = calculate_majority_sign_mask(changes * share)
    mean, whole = disjoint_merge(changes * share, agreeing), disjoint_merge(share, agreeing)
    return original + torch.where(whole > 0, mean / whole, 0)


@dataclass(frozen=True)
class SideGate:
    """The intervention: rows whose activations a side memory changes enough read that memory.

    The distance of a memory is the mean over a row's tokens of ‖a(Wx) - a(W'x)‖, with a the model's activation
    function (WISE Eq. 5). `over`: the prompt's tokens, or all that a pass reads; `decided_for` batch: the mean over
    its rows decides for all of them; `largest_from`: rows of so many tokens have the largest of a token.
    """

    store: Store
    module: str
    ratio: float
    over: DistanceOver = "prompt"
    decided_for: DecidedFor = "row"
    largest_from: int | None = None

    def __call__(
        self, this: Pass, entered: Float[Tensor, "n t f"], output: Float[Tensor, "n t d"]
    ) -> Float[Tensor, "n t d"]:
        matrix = self.store.lm.model.get_submodule(self.module)
        held = memories(self.store, self.ratio)
        if this.continues and self.over == "prompt":
            slots, moved = this.memo["side_memory.slot"], None
        else:
            counted = (this.prompt if self.over == "prompt" and not this.continues else this.real).to(output.device)
            function = activation(self.store.lm.model)
            moved = Moved(matrix, function, counted, entered, output, self.largest_from)
            slots = self._decide(this, held, moved)
        if self.over == "prompt":
            this.memo["side_memory.slot"] = slots
        for i, memory in enumerate(held):
            rows = (slots == i).nonzero()[:, 0]
            if len(rows):
                weight = memory.weight.to(output)
                read = moved.rows(i, weight, rows, this.real) if moved else product(matrix, weight, entered[rows])
                output = output.index_copy(0, rows, read)
        return output

    def _decide(self, this: Pass, held: Sequence[SideMemory], moved: "Moved") -> Int[Tensor, " n"]:
        """Which memory each row reads; -1: none."""
        verdict = Verdict.none(len(moved.output), moved.output.device)
        if held:
            distances = torch.stack([moved.distance(memory.weight) for memory in held])
            if self.decided_for == "batch":
                distances = distances.mean(1, keepdim=True).expand_as(distances)
            verdict = chosen(distances, [memory.threshold for memory in held])
        verdict.note(this, lambda slot: None)
        return torch.where(verdict.open, verdict.slot, -1)


class Moved:
    """What a matrix puts out for some rows with other weights in the place of its own: at the tokens that count, where
    it is compared with its own, and at the rest of the rows that read it. No token is computed twice."""

    def __init__(
        self,
        matrix: nn.Module,
        function: nn.Module,
        counted: Bool[Tensor, "m t"],
        entered: Float[Tensor, "m t f"],
        output: Float[Tensor, "m t d"],
        largest_from: int | None,
    ):
        self.matrix, self.function, self.largest_from = matrix, function, largest_from
        self.counted, self.entered, self.output = counted, entered, output
        self.at_counted, self.before = entered[counted], function(output[counted].float())
        self.known: list[Float[Tensor, "k d"]] = []  # a part for each memory, at the tokens that count

    def distance(self, weight: Tensor) -> Float[Tensor, " m"]:
        """How far weights, of the next memory, move each row."""
        self.known.append(product(self.matrix, weight.to(self.entered), self.at_counted))
        apart = self.before.new_zeros(self.counted.shape)
        apart[self.counted] = (self.function(self.known[-1].float()) - self.before).norm(dim=-1)
        length = self.counted.sum(-1)
        mean = apart.sum(-1) / length.clamp(min=1)
        if self.largest_from is None:
            return mean
        return torch.where(length >= self.largest_from, apart.amax(-1), mean)

    def rows(
        self, memory: int, weight: Tensor, rows: Int[Tensor, " r"], real: Bool[Tensor, "m t"]
    ) -> Float[Tensor, "r t d"]:
        """What these rows read with the `memory`-th weights."""
        reads = torch.zeros_like(self.counted[:, 0]).index_fill(0, rows, True)
        read, counted = self.output[rows], self.counted[rows]
        read[counted] = self.known[memory][reads[self.counted.nonzero()[:, 0]]]
        rest = real.to(rows.device)[rows] & ~counted
        read[rest] = product(self.matrix, weight, self.entered[rows][rest])
        return read


def chosen(distances: Float[Tensor, "k m"], thresholds: Sequence[float | None]) -> Verdict:
    """The memory in training from its threshold on; a saved one, if it is farther than those before it and beyond its
    own."""
    limits = [float("inf") if threshold is None else threshold for threshold in thresholds]
    farthest, slot = distances[0].clone(), torch.zeros(distances.shape[1], dtype=torch.long, device=distances.device)
    is_open = farthest >= limits[0]
    for i, (distance, limit) in enumerate(zip(distances[1:], limits[1:], strict=True), 1):
        taken = (distance > farthest) & (distance > limit)
        farthest, slot = torch.where(taken, distance, farthest), torch.where(taken, i, slot)
        is_open = is_open | taken
    return Verdict(slot, farthest, is_open)


def side_of(lm: LM, module: str) -> Float[Tensor, "_ _"]:
    """A fresh side memory: the matrix's own weight, in single precision."""
    return lm.parameter(f"{module}.weight").detach().to(torch.promote_types(lm.dtype, torch.float32), copy=True)
