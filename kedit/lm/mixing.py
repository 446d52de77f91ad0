"""Answers of several models together: p = Σ weight · p_reader, in scoring and in each step of a generation."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kedit.lm.generate import left_padded, left_positions
from kedit.lm.intervention import Pass, keep_rows
from kedit.lm.shared_prefix import Shared, may_pad_inside, read_behind, shared_beginnings
from kedit.lm.text import Batch, Pair

if TYPE_CHECKING:
    from kedit.lm.model import LM


def own_weight(pair: Pair) -> float:
    """What the readers of a row leave for the model itself."""
    return 1.0 - sum(reader.weight for reader in pair.reading.readers.values())


class MixedScores:
    """Log-probabilities at the answer positions of a batch, with those of the models that its rows name."""

    def __init__(self, lm: "LM", batch: Batch):
        self.batch = batch
        self.own = torch.tensor([own_weight(pair) for pair in batch.pairs], device=batch.row.device).log()
        named = dict.fromkeys(name for pair in batch.pairs for name in pair.reading.readers)
        self.lent = [_LentScores(lm.lent[name], name, batch) for name in named]

    def log_probabilities(self, logits: Float[Tensor, "m v"], begin: int) -> Float[Tensor, "m v"]:
        """From the model's own logits at the positions from the `begin`-th on."""
        own = logits.log_softmax(-1)
        if not self.lent:
            return own
        rows = self.batch.row[begin : begin + len(own)]
        parts = [own + self.own[rows, None].to(own), *(lent.parts(own, begin) for lent in self.lent)]
        return torch.stack(parts).logsumexp(0)


class _LentScores:
    """One lent model's part: weighted log-probabilities at the positions of the rows that name it."""

    def __init__(self, other: "LM", name: str, batch: Batch):
        rows = [i for i, pair in enumerate(batch.pairs) if name in pair.reading.readers]
        readers = [batch.pairs[i].reading.readers[name] for i in rows]
        prompts = other.text.prompts([reader.prompt for reader in readers])
        answers = [batch.pairs[i].answer for i in rows]
        pairs = [Pair(ids + answer, len(ids)) for ids, answer in zip(prompts, answers, strict=True)]
        read = other.batch(pairs)
        self.other, self.states = other, other.answer_states(read)
        self.weight = torch.tensor([reader.weight for reader in readers]).log()[read.row.cpu()]
        mine = torch.isin(batch.row.cpu(), torch.tensor(rows))
        self.place = torch.where(
            mine, mine.cumsum(0) - 1, -1
        )  # where each answer position of the batch is among these states

    def parts(self, own: Float[Tensor, "m v"], begin: int) -> Float[Tensor, "m v"]:
        """-inf at positions of rows that do not name it."""
        found = torch.full_like(own, -math.inf)
        place = self.place[begin : begin + len(own)]
        mine = (place >= 0).nonzero()[:, 0]
        if len(mine):
            logits = self.other.head(self.states[place[mine].to(self.states.device)]).float()
            found[mine.to(found.device)] = (logits.log_softmax(-1).cpu() + self.weight[place[mine], None]).to(found)
        return found


class Steps:
    """The steps of one batch's generation: passes of the model, and of the models that its rows name."""

    def __init__(self, lm: "LM", pairs: Sequence[Pair]):
        self.lm, self.pairs = lm, pairs
        self.memo: dict[object, Any] = {}
        self.rows: Sequence[int] = ()  # the last step's
        self._mask: Tensor | None = None  # covers what the cache holds, if a beginning was read once for several rows
        named = dict.fromkeys(name for pair in pairs for name in pair.reading.readers)
        self.lent = [_LentSteps(lm.lent[name], name, pairs) for name in named]

    def step(
        self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n s"], rows: Sequence[int], cache: Any, first: bool
    ) -> tuple[Float[Tensor, "n v"], Any]:
        """Logits (log-probabilities, if models are mixed) behind the last token of each row, and the cache."""
        self.rows = rows
        if first and (groups := self._shared(rows)):
            return self._begin_shared(groups)
        if self._mask is not None:
            mask = self._mask = torch.cat([self._mask, self._mask.new_ones(len(rows), ids.shape[1])], dim=1)
        real = mask[:, -ids.shape[1] :].bool()
        who = [self.pairs[i].reading for i in rows]
        prompt = real & (real.cumsum(-1) > prefix_lengths(who, real.device)) if first else torch.zeros_like(real)
        this = Pass(real, prompt, not first, who, self.memo)
        logits, cache = _pass(self.lm, this, ids, mask, cache)
        for lent in self.lent:
            logits = lent.mixed(logits, ids, rows, first)
        return logits, cache

    def _shared(self, rows: Sequence[int]) -> list[Shared]:
        """Groups of rows that begin alike, in their order; none if not every row is in one."""
        alone = self.lent or not may_pad_inside(self.lm)  # what is generated stands behind the padding
        groups = [] if alone else shared_beginnings(self.lm, [self.pairs[i] for i in rows])
        grouped = [row for group in groups for row in group.rows]
        return groups if grouped and sorted(grouped) == list(range(len(rows))) else []

    def _begin_shared(self, groups: Sequence[Shared]) -> tuple[Float[Tensor, "n v"], Any]:
        """The first step, in which each group's beginning is read once."""
        pairs = [self.pairs[i] for i in self.rows]
        read = read_behind(self.lm, pairs, groups, self.memo, "left")
        grouped = [row for group in groups for row in group.rows]
        back = torch.tensor(grouped, device=read.mask.device).argsort()
        self._mask = read.mask[back]
        return self.lm.head(read.hidden[back, -1]).float(), selected(read.cache, back)

    def select(self, cache: Any, which: Int[Tensor, " m"]) -> Any:
        """Some rows of a cache, and of what the memo holds for each row."""
        if self._mask is not None:
            self._mask = self._mask[which]
        variants = [self.pairs[i].reading.variant for i in self.rows]
        keep_rows(self.memo, which.tolist(), variants)
        return selected(cache, which)


class _LentSteps:
    """One lent model's passes over the rows that name it."""

    def __init__(self, other: "LM", name: str, pairs: Sequence[Pair]):
        self.other = other
        self.readers = {i: pair.reading.readers[name] for i, pair in enumerate(pairs) if name in pair.reading.readers}
        self.own = {i: own_weight(pairs[i]) for i in self.readers}
        self.rows: list[int] = []
        self.mask: Tensor = torch.empty(0)
        self.cache: Any = None

    def mixed(
        self, logits: Float[Tensor, "n v"], ids: Int[Tensor, "n t"], rows: Sequence[int], first: bool
    ) -> Float[Tensor, "n v"]:
        at = [j for j, row in enumerate(rows) if row in self.readers]
        if not at:
            return logits
        mine = [rows[j] for j in at]
        theirs = self._step(ids[torch.tensor(at, device=ids.device)], mine, first).log_softmax(-1).to(logits)
        index = torch.tensor(at, device=logits.device)
        weights = ((self.own[row], self.readers[row].weight) for row in mine)
        own, other = torch.tensor(list(weights), device=logits.device).clamp(min=0).log()[..., None].unbind(1)
        both = torch.logaddexp(logits[index].log_softmax(-1) + own, theirs + other)
        return logits.log_softmax(-1).index_copy(0, index, both)

    def _step(self, ids: Int[Tensor, "m t"], rows: list[int], first: bool) -> Float[Tensor, "m v"]:
        if first:
            prompts = self.other.text.prompts([self.readers[row].prompt for row in rows])
            ids, self.mask = left_padded(prompts, self.other.device)
        else:
            self._leave(rows)
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(rows), 1)], dim=1)
        self.rows = rows
        this = Pass.over(ids)
        logits, self.cache = _pass(self.other, this, ids.to(self.other.device), self.mask, self.cache)
        return logits

    def _leave(self, rows: Sequence[int]) -> None:
        """Drop the rows that have ended."""
        if list(rows) != self.rows:
            which = torch.tensor([self.rows.index(row) for row in rows], device=self.mask.device)
            self.cache = selected(self.cache, which)
            self.mask = self.mask[which]


def selected(cache: Any, which: Int[Tensor, " m"]) -> Any:
    """Some rows of a KV cache whose layers may lie on several devices."""
    for layer in cache.layers:
        if layer.is_initialized:
            layer.batch_select_indices(which.to(layer.keys.device))
    return cache


def _pass(lm: "LM", this: Pass, ids: Tensor, mask: Tensor, cache: Any) -> tuple[Float[Tensor, "n v"], Any]:
    positions = left_positions(mask)[:, -ids.shape[1] :]
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    out = lm.body(this, **inputs, past_key_values=cache, use_cache=True)
    return lm.head(out.last_hidden_state[:, -1]).float(), out.past_key_values


def prefix_lengths(who: Sequence[Any], device: torch.device) -> Int[Tensor, "n 1"]:
    """How many places of each row are its soft prompt's."""
    lengths = [0 if reading.prefix is None else len(reading.prefix) for reading in who]
    return torch.tensor(lengths, device=device)[:, None]
