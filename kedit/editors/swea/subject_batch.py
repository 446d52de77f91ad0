"""What teaches a subject's altered embeddings: prompts that hold it, by the tokens it is spelt with there.

A byte-level tokenizer spells a subject that begins a text differently from one behind a blank. Each spelling in the
prompts has its own change, so that training and reading alter the same tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kedit.cases import Edit
from kedit.editors.attribution import HookPoint, asked, integrated_gradients
from kedit.editors.subject import ends
from kedit.editors.swea.embedding_deltas import TokenKey, adding, lengths, longest
from kedit.lm.intervention import Change
from kedit.lm.text import Pair

if TYPE_CHECKING:
    from kedit.lm.model import LM


@dataclass(frozen=True, slots=True)
class SubjectBatch:
    """The rows of one subject."""

    keys: list[TokenKey]  # its subject_tokenizations
    facts: list[Pair]
    bare: list[Pair]  # for each spelling, where there is one: a text that ends one token behind the subject
    old: list[tuple[int, list[Pair]]]  # which spelling, and a prompt that holds it with each token of an old answer

    @property
    def rows(self) -> list[Pair]:
        return [*self.facts, *self.bare]

    @property
    def size(self) -> int:
        """Tokens of a padded batch of the rows."""
        return len(self.rows) * max(len(pair.ids) for pair in self.rows)


def subject_batch(lm: "LM", subject: str, facts: Sequence[Sequence[Edit]], bare: Sequence[str]) -> SubjectBatch:
    """Rows of facts about the subject, each behind its other wordings or contexts; `bare`: the subject alone, in some
    contexts. Raises InputError where a prompt lacks the subject."""
    rows = [(n, edit) for n, some in enumerate(facts) for edit in some]
    spelt = [key for key, _ in subject_tokenizations(lm, subject, [edit.prompt for _, edit in rows])]
    keys = list(dict.fromkeys(spelt))
    alone: dict[TokenKey, Pair] = {}
    for (key, end), ids in zip(subject_tokenizations(lm, subject, bare), lm.text.prompts(bare), strict=True):
        alone.setdefault(key, Pair(ids[: end + 1], end))
    first = {(n, key): edit for (n, edit), key in reversed(list(zip(rows, spelt, strict=True))) if edit.target_old}
    olds = lm.text.pairs([edit.prompt for edit in first.values()], [str(edit.target_old) for edit in first.values()])
    return SubjectBatch(
        keys,
        lm.text.pairs([edit.prompt for _, edit in rows], [edit.target_new for _, edit in rows]),
        [alone[key] for key in keys if key in alone],
        [(keys.index(key), asked(pair)) for (_, key), pair in zip(first, olds, strict=True)],
    )


def subject_tokenizations(lm: "LM", subject: str, prompts: Sequence[str]) -> list[tuple[TokenKey, int]]:
    """The subject's tokens in each prompt, where it last stands there, and the token behind them."""
    found = []
    wanted = subject.strip()
    for prompt, (ids, offsets) in zip(prompts, lm.text.offsets(prompts), strict=True):
        [last] = ends(prompt, wanted, "last")
        start, end = last + 1 - len(wanted), last + 1
        held = [i for i, (a, b) in enumerate(offsets) if max(a, start) < min(b, end)]
        found.append((tuple(ids[held[0] : held[-1] + 1]), held[-1] + 1))
    return found


class SubjectForwards:
    """Forward passes with per-subject deltas; the deltas installed in the model are disabled."""

    def __init__(self, lm: "LM", lessons: Sequence[SubjectBatch]):
        self.lm = lm
        self.batch = lm.batch([pair for each in lessons for pair in each.rows])
        owners = [i for i, each in enumerate(lessons) for _ in each.rows]
        bare = [j >= len(each.facts) for each in lessons for j in range(len(each.rows))]
        self.owner: Int[Tensor, " n"] = torch.tensor(owners, device=self.batch.row.device)  # each row's subject_batch
        self.bare: Bool[Tensor, " n"] = torch.tensor(bare, device=self.batch.row.device)
        self.of_key: Int[Tensor, " keys"] = torch.tensor([i for i, each in enumerate(lessons) for _ in each.keys])
        self.own = [lm.embeddings(key) for each in lessons for key in each.keys]  # embeddings of every spelling, [s d]
        self._place([key for each in lessons for key in each.keys], owners)

    def _place(self, keys: Sequence[TokenKey], owners: Sequence[int]) -> None:
        """Which number of the changes, one below the other, goes to which place of the batch."""
        begins = torch.tensor([0, *map(len, keys)]).cumsum(0).tolist()
        mine = [{keys[k]: begins[k] for k in (self.of_key == i).nonzero()[:, 0].tolist()} for i in set(owners)]
        row: list[int] = []
        at: list[int] = []
        which: list[int] = []
        for r, (pair, owner) in enumerate(zip(self.batch.pairs, owners, strict=True)):
            start, key = longest(pair.prompt, mine[owner], lengths(mine[owner]))
            row += [r] * len(key)
            at += range(start, start + len(key))
            which += range(mine[owner][key], mine[owner][key] + len(key))
        self.row, self.which = (torch.tensor(part, device=self.batch.ids.device) for part in (row, which))
        self.col = self.batch.first[self.row] + torch.tensor(at, device=self.batch.ids.device)

    def logprobs(self, deltas: Sequence[Float[Tensor, "_ d"]] | None) -> Float[Tensor, "k v"]:
        """Log-probabilities at the answers' places; `None`: those of the model as it was."""
        with self.lm.only_intervening(self._changes(deltas)):
            return self.lm.answer_logits(self.batch).float().log_softmax(-1)

    def _changes(self, deltas: Sequence[Float[Tensor, "_ d"]] | None) -> dict[str, Change]:
        if deltas is None:
            return {}
        return {self.lm.embedding_module: adding(self.row, self.col, torch.cat(list(deltas))[self.which])}

    def mean(self, values: Float[Tensor, " n"], bare: bool) -> Float[Tensor, " lessons"]:
        """Over each subject_batch's fact rows, or over its bare ones; 0 where there are none."""
        chosen = (self.bare == bare).to(values)
        sums, counts = (values.new_zeros(int(self.owner.max()) + 1) for _ in range(2))
        return sums.index_add(0, self.owner, values * chosen) / counts.index_add(0, self.owner, chosen).clamp(min=1)


def attributions(
    lm: "LM", lessons: Sequence[SubjectBatch], at: Sequence[float]
) -> list[list[tuple[int, Float[Tensor, "_ d"]]]]:
    """For each batch and each of its old answers: the index of the subject's tokenization, and the attribution of the
    answer's probability to each dimension of the subject's embeddings, one token varied at a time, averaged over the
    answer's tokens."""
    asked_of = [(pair, each.keys[key]) for each in lessons for key, tokens in each.old for pair in tokens]
    if not asked_of:
        return [[] for _ in lessons]
    sites = []
    for pair, key in asked_of:
        start, _ = longest(pair.prompt, [key], lengths([key]))
        sites.append([HookPoint(lm.embedding, start + j, output=True) for j in range(len(key))])
    with lm.without_interventions():
        found = iter(integrated_gradients(lm, [pair for pair, _ in asked_of], sites, at))
    return [
        [(key, torch.stack([next(found)[0] for _ in tokens]).mean(0)) for key, tokens in each.old] for each in lessons
    ]
