"""What a loader returns, and what all loaders do: order, deduplicate, limit."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from kedit.cases import Case
from kedit.common.errors import InputError
from kedit.data.records import find_field

Dedup = Literal["first", "none", "odd_toggle_last"]
Overlap = Literal["drop", "keep"]  # training cases about what is tested

HELD_OUT = (
    "The ferry left the harbour a little after seven. There was fog on the water, and for the first half hour the "
    "passengers saw nothing but a grey wall and, now and then, a buoy that rang as the ship went by. A man in a "
    "long coat read the morning paper aloud to his wife, who was knitting. He read that the council had voted for "
    "a new bridge, that the price of bread would rise again in the spring, and that a schoolteacher in the next "
    "town had grown a pumpkin of ninety kilograms. When the fog lifted, the islands were already close. One could "
    "see the white houses, the road that climbs from the pier to the church, and behind it the hills where sheep "
    "are kept. The captain slowed the engines and let the ship drift to the landing. Nobody was in a hurry. The "
    "man folded his paper, his wife put away her wool, and the two of them waited until everybody else had gone "
    "ashore."
)  # written for kedit; any fixed text would do: only its perplexity before and after is compared


@dataclass(frozen=True, slots=True)
class Dataset:
    """Cases in the order in which they are edited, and what a reader of the results must know about them."""

    cases: tuple[Case, ...]
    train: tuple[Case, ...] = ()  # what an editor's `fit` may learn from
    source: str = ""  # file or generator
    file: str = ""  # on this machine; empty if a generator made the cases
    sha256: str = ""  # the file's
    dropped: dict[str, int] = field(default_factory=dict)  # what the loader left out, by reason
    notes: tuple[str, ...] = ()  # what else the report and the captions should say
    held_out: str = HELD_OUT  # a text that no edit is about; its perplexity shows collapse

    def where(self, case: Case, text: str) -> str:
        """For an error about a text of a case: the file, the record and its field, or the generator and the case."""
        index = case.id.rpartition("-")[2]
        if not self.file or not index.isdigit():
            return f"{self.source}: case {case.id}"
        field = find_field(Path(self.file), int(index), text, _subject(case))
        return f"{self.source}: record {index}" + (f", field {field!r}" if field else "")


def select(
    cases: Sequence[Case], *, dedup: Dedup, order_seed: int | None, limit: int | None, dropped: Counter[str]
) -> tuple[Case, ...]:
    """Deduplicate by subject, shuffle (None: keep the file's order), take the first `limit` (None: all). `dropped`
    counts what is left out."""
    if dedup not in DEDUP:
        raise InputError(f"dataset.dedup={dedup}: choose from {', '.join(DEDUP)}")
    kept = DEDUP[dedup](cases)
    if len(kept) < len(cases):
        dropped["repeated subject"] += len(cases) - len(kept)
    if order_seed is not None:
        random.Random(order_seed).shuffle(kept)
    if limit is not None and limit < 1:
        raise InputError(f"dataset.limit={limit}: give at least 1, or null for all {len(kept)}")
    return tuple(kept[:limit])


def hand_over(dataset: Dataset) -> Dataset:
    """Each edit with its case's first locality prompt, for editors that are said to need one; a note says so."""
    cases = []
    for case in dataset.cases:
        prompt = next((probe.prompt for probe in case.probes if probe.kind == "locality"), None)
        cases.append(replace(case, edits=tuple(replace(edit, loc_prompt=prompt) for edit in case.edits)))
    without = sum(case.edits[0].loc_prompt is None for case in cases)
    note = "the editor was given each case's first locality prompt, which is a test prompt"
    note += f" ({without} cases have none)" if without else ""
    return replace(dataset, cases=tuple(cases), notes=(*dataset.notes, note))


def leakage_note(train: Sequence[Case], cases: Sequence[Case]) -> tuple[str, ...]:
    """How much of what the cases test the training split holds, as a note; none if there is no training split."""
    if not train:
        return ()
    subjects = {_key(subject) for case in cases for subject in _subjects(case)}
    known = {_key(subject) for case in train for subject in _subjects(case)}
    tested = _questions(cases)
    return (
        f"of {len(subjects)} test subjects {len(subjects & known)} occur in the training split, and of {len(tested)} "
        f"test questions {len(tested & _questions(train))}",
    )


def drop_leaking(train: Sequence[Case], cases: Sequence[Case], dropped: Counter[str]) -> list[Case]:
    """The training cases whose subject occurs in no question of the test cases, and that ask none of these questions;
    `dropped` counts the others."""
    mentioned = {mention for case in cases for probe in case.probes for mention in _mentions(probe.prompt)}
    tested = _questions(cases)
    unknown = [case for case in train if mentioned.isdisjoint(_key(subject) for subject in _subjects(case) or [""])]
    kept = [case for case in unknown if tested.isdisjoint(_questions([case]))]
    dropped["training case about a subject that a test asks about"] += len(train) - len(unknown)
    dropped["training case with a question that a test asks"] += len(unknown) - len(kept)
    return kept


def _questions(cases: Sequence[Case]) -> set[str]:
    return {_key(probe.prompt) for case in cases for probe in case.probes}


def _key(text: str) -> str:
    """The words alone, in lower case: what is compared."""
    return " ".join(_words(text))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _mentions(prompt: str, longest: int = 12) -> Iterator[str]:
    """Every sequence of at most `longest` words."""
    words = _words(prompt)
    for start in range(len(words)):
        for end in range(start + 1, min(start + longest, len(words)) + 1):
            yield " ".join(words[start:end])


def _subject(case: Case) -> str | None:
    return case.edits[0].subject


def _subjects(case: Case) -> list[str]:
    """Those of all its edits, each once."""
    return list(dict.fromkeys(edit.subject for edit in case.edits if edit.subject))


def _first(cases: Sequence[Case]) -> list[Case]:
    """The first case of each subject, in file order: KDPO's rule as its text has it. A case of several edits repeats a
    subject if one of its edits does; cases without a subject repeat none."""
    seen: set[str] = set()
    kept = []
    for case in cases:
        if seen.isdisjoint(_subjects(case)):
            kept.append(case)
            seen.update(_subjects(case))
    return kept


def _odd_toggle_last(cases: Sequence[Case]) -> list[Case]:
    """A subject seen again removes what was kept of it: odd counts keep the last, even counts nothing (KDPO's
    WikiBio)."""
    kept: dict[str, Case] = {}
    for case in cases:
        subject = _subject(case) or case.id
        if kept.pop(subject, None) is None:
            kept[subject] = case
    return list(kept.values())


DEDUP: dict[str, Callable[[Sequence[Case]], list[Case]]] = {
    "first": _first,
    "none": list,
    "odd_toggle_last": _odd_toggle_last,
}
