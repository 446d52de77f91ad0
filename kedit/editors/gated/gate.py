"""Gates: which entry of a store, if any, a row of a batch is read with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kedit.editors.gated.store import MASKED, PAD
from kedit.lm import Pass

Key = Literal["prompt", "prompt_and_answer"]  # whose last token the key is read at
LabelMatch = Literal["tokens", "mean", "sum"]
SAME = 1e-3  # share of the initial radius: a key this near is the same prompt, edited again


@dataclass(frozen=True, slots=True)
class Verdict:
    """The nearest entry of each row, how far it is, and whether the gate opens for it."""

    slot: Int[Tensor, " n"]
    distance: Float[Tensor, " n"]
    open: Bool[Tensor, " n"]

    @classmethod
    def none(cls, n: int, device: torch.device) -> "Verdict":
        """Nothing is near, every gate is shut."""
        shut = torch.zeros(n, dtype=torch.bool, device=device)
        return cls(torch.full((n,), -1, device=device), torch.full((n,), torch.inf, device=device), shut)

    def note(self, this: Pass, edits: Callable[[int], int | None]) -> None:
        """Into each row's info. `edits(slot)`: the number of the edit that taught this entry."""
        told = zip(self.slot.tolist(), self.distance.tolist(), self.open.tolist(), strict=True)
        for i, (slot, distance, is_open) in enumerate(told):
            known = {} if slot < 0 else {"slot": slot, "distance": round(distance, 6)}
            edit = None if slot < 0 else edits(slot)
            this.note(i, **known, **({} if edit is None else {"edit": edit}), in_scope=int(is_open))


def key_columns(this: Pass, key: Key) -> Int[Tensor, " n"]:
    """The column of each row's key token; -1 in rows without one."""
    if key == "prompt":
        return this.last_prompt_token()
    columns = torch.arange(this.real.shape[1], device=this.real.device)
    return torch.where(this.real, columns, -1).amax(-1)


def at_columns(states: Float[Tensor, "n t w"], columns: Int[Tensor, " n"]) -> Float[Tensor, "n w"]:
    """The state at one column of each row."""
    columns = columns.to(states.device)
    return states[torch.arange(len(states), device=states.device), columns]


def nearest(keys: Float[Tensor, "k w"], queries: Float[Tensor, "m w"]) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"]]:
    """Euclidean distance to the nearest key and its place; of equally near ones the newest. Exact."""
    queries = queries.float()
    apart = torch.cdist(queries, keys.to(queries), compute_mode="donot_use_mm_for_euclid_dist")
    distance, place = apart.flip(-1).min(-1)
    return distance, len(keys) - 1 - place


def within(keys: Float[Tensor, "k w"], radii: Float[Tensor, " k"], queries: Float[Tensor, "m w"]) -> Verdict:
    """Open if a query lies in the ball around its nearest key (GRACE Eq. 1; MELO)."""
    distance, slot = nearest(keys, queries)
    return Verdict(slot, distance, distance <= radii.to(distance)[slot])


def labels_match(how: LabelMatch, one: Int[Tensor, " t"], other: Int[Tensor, " s"]) -> bool:
    """Do two labels ask for the same answer? "tokens": the answers are equal. "mean" (GRACE's released code): the means
    of the labels are, masked tokens included. "sum" (MELO's): the sums of the answers' token ids are."""
    one, other = (row[row != PAD] for row in (one, other))
    if how == "mean":
        return bool(one.float().mean() == other.float().mean())
    answers = [row[row != MASKED] for row in (one, other)]
    if how == "sum":
        return int(answers[0].sum()) == int(answers[1].sum())
    return answers[0].tolist() == answers[1].tolist()
