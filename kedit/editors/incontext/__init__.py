"""Editing without changing a weight: edits are stored, and what a prompt needs of them is put before it.

One pipeline: memory, augmentation, filter, prompt, adapter. IKE, EREN, LTE, KEDAS and KEDAS's ablations are yamls.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor

from kedit.cases import Case, Edit
from kedit.common.errors import InputError
from kedit.common.options import Count
from kedit.editors import Editor
from kedit.editors.incontext.alignment import Alignment
from kedit.editors.incontext.augmentation import Augmentation, with_augmentations
from kedit.editors.incontext.edit_memory import EditMemory, Hit
from kedit.editors.incontext.filter import Filter
from kedit.editors.incontext.prompts import Prompt
from kedit.lm import LM, Route

When = Literal["recalled", "always"]
Key = Literal["wording", "prompt"]
Judged = Literal["string", "edit"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A stored string that was retrieved for a query."""

    hit: Hit
    probability: float | None  # that it is relevant, by the filter; None without one
    accepted: bool


@dataclass(kw_only=True, eq=False)
class InContext(Editor):
    """Stores each edit in its wordings; a query is given what `memory` retrieves and `filter` accepts (null: all), at
    most `inject` strings, those of the highest cosine (KEDAS Eqs. 12-14), in a prompt.

    `alignment` (null: none) is an adapter that has learnt to read such prompts. It reads what was `recalled` something
    for, and the model alone everything else (KEDAS Eq. 15); or `always` everything (LTE; KEDAS without SPI). What is
    recalled depends on the prompt alone, unless eval.routed_by says otherwise. Filter and alignment learn from training
    cases, of which `more_training` may make more.

    An edit is found by each `wording`, or by its `prompt` (`found_by`). What is judged, and injected, is each retrieved
    string, or each `edit` once, at its nearest string and as its QA form (`judged`).

    Without `uses_edits` nothing is retrieved: the aligned model reads every prompt as it is (KEDAS Table 8).
    """

    memory: EditMemory
    prompt: Prompt
    augmentation: Augmentation | None = None
    filter: Filter | None = None
    alignment: Alignment | None = None
    more_training: Callable[[Sequence[Case]], Sequence[Case]] | None = None
    inject: Count = 1
    found_by: Key = "wording"
    judged: Judged = "string"
    aligned_when: When = "recalled"
    uses_edits: bool = True

    def __post_init__(self) -> None:
        for name, choices in (("aligned_when", When), ("found_by", Key), ("judged", Judged)):
            if getattr(self, name) not in get_args(choices):
                raise InputError(f"editor.{name}={getattr(self, name)}: choose from {', '.join(get_args(choices))}")
        if self.alignment and self.alignment.name is None and self.aligned_when != "always":
            raise InputError(
                f"editor.aligned_when={self.aligned_when} needs the unaligned model beside the aligned one; set it to "
                "always, or align by an adapter"
            )
        if not self.uses_edits and (self.alignment is None or self.aligned_when != "always"):
            raise InputError(
                "editor.uses_edits=false leaves the unedited model as it is, unless an aligned one reads everything; "
                "choose editor=post_alignment, or set it to true"
            )

    @property
    def needs_train(self) -> bool:  # type: ignore[override]
        return any(part is not None and part.needs_train for part in (self.prompt, self.filter, self.alignment))

    @property
    def least_gain(self) -> float:  # type: ignore[override]
        return super().least_gain if self.uses_edits and self.prompt.shows_edits else -math.inf

    def missing_inputs(self) -> Iterator[str]:
        for part in (self.alignment, self.augmentation, self.prompt, self.filter, self.memory):
            if part is not None:
                yield from part.missing_inputs()

    def prepare(self, edits: Sequence[Edit]) -> None:
        self.memory.load()
        if self.augmentation:
            self.augmentation.prepare(edits)

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        self.memory.load()
        self.prompt.fit(lm, train)
        train = self.more_training(train) if self.more_training and train else train
        if self.filter:
            self.filter.fit(train)
        if self.alignment:
            self.alignment.fit(lm, train)

    def fit_report(self) -> Mapping[str, Any]:
        parts = {"filter": self.filter, "alignment": self.alignment}
        return {name: part.fit_report() for name, part in parts.items() if part}

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        if not edits:
            return {}
        keys = [edit.prompt for edit in edits] if self.found_by == "prompt" else None
        self.memory.add(with_augmentations(edits, self.augmentation), keys)
        if self.filter:
            self.filter.forget()
        self._take_over(lm)
        return {"strings": len(self.memory.entries)}

    def _take_over(self, lm: LM) -> None:
        """From now on, until `lm.restore`, prompts go through the memory."""
        if self.alignment:
            self.alignment.attach(lm)
        lm.route = partial(self._route, lm)

    def fork(self) -> "InContext":
        other = copy(self)
        other.memory = self.memory.emptied()
        return other

    def reset(self) -> None:
        self.memory.clear()

    def state(self) -> dict[str, Tensor | str]:
        return self.memory.state()

    def load_state(self, lm: LM, state: Mapping[str, Tensor | str]) -> None:
        self.memory.load_state(state)
        if self.memory.entries:
            self._take_over(lm)

    # --- reading -----------------------------------------------------------------------------------------------------

    def retrieve(self, queries: Sequence[str]) -> list[list[Candidate]]:
        """What is retrieved for each query, the nearest first, and whether the filter accepts it."""
        retrieved = self.memory.nearest(queries)
        if self.judged == "edit":
            retrieved = [self.memory.by_edit(hits) for hits in retrieved]
        if self.filter is None:
            return [[Candidate(hit, None, True) for hit in hits] for hits in retrieved]
        pairs = [(query, hit.entry.text) for query, hits in zip(queries, retrieved, strict=True) for hit in hits]
        probabilities = iter(self.filter(pairs))
        judged = [[(hit, next(probabilities)) for hit in hits] for hits in retrieved]
        return [[Candidate(hit, p, p >= self.filter.threshold) for hit, p in hits] for hits in judged]

    def in_context(self, retrieved: Sequence[Candidate]) -> list[Candidate]:
        """What the prompt is given of it."""
        return [candidate for candidate in retrieved if candidate.accepted][: self.inject]

    def _route(self, lm: LM, prompts: Sequence[str], keys: Sequence[str]) -> list[Route]:
        retrieved = self.retrieve(keys) if self.uses_edits else [[] for _ in keys]
        facts = [[candidate.hit.entry.text for candidate in self.in_context(found)] for found in retrieved]
        some = [i for i, known in enumerate(facts) if known]
        written = dict(
            zip(some, self.prompt.compose(lm, [prompts[i] for i in some], [facts[i] for i in some]), strict=True)
        )
        return [self._to(prompt, written.get(i, prompt), retrieved[i], facts[i]) for i, prompt in enumerate(prompts)]

    def _to(self, prompt: str, written: str, retrieved: Sequence[Candidate], facts: Sequence[str]) -> Route:
        in_scope = written != prompt
        adapted = self.alignment is not None and (in_scope or self.aligned_when == "always")
        adapter = self.alignment.name if self.alignment and adapted else None
        return Route(written, adapter, info=routed_by(retrieved, facts if in_scope else [], adapter))


def routed_by(retrieved: Sequence[Candidate], in_context: Sequence[str], adapter: str | None) -> dict[str, Any]:
    """What the rows keep of a route: what was retrieved, and which of it the model was given."""
    return {
        "retrieved": [_told(candidate) for candidate in retrieved],
        "in_context": list(in_context),
        "in_scope": int(bool(in_context)),
        "adapter": adapter,
    }


def _told(candidate: Candidate) -> dict[str, Any]:
    """The form in which rows keep it."""
    entry, cosine = candidate.hit.entry, round(candidate.hit.cosine, 6)
    judged = {} if candidate.probability is None else {"probability": round(candidate.probability, 6)}
    return {"edit": entry.edit, "form": entry.form, "cosine": cosine, **judged, "accepted": int(candidate.accepted)}
