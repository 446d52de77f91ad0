"""What a loader returns, and what all loaders do: order, deduplicate, limit."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kedit.cases import Case
from kedit.common.errors import InputError

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
    sha256: str = ""  # of the file
    dropped: dict[str, int] = field(default_factory=dict)  # what the loader left out, by reason
    notes: tuple[str, ...] = ()  # what else the report and the captions should say
    held_out: str = HELD_OUT  # a text that no edit is about; its perplexity shows collapse


def select(
    cases: Sequence[Case], *, dedup: Dedup, order_seed: int | None, limit: int | None, dropped: Counter[str]
) -> tuple[Case, ...]:
    """Deduplicate by subject, shuffle (null: file order), take the first `limit`; counts what it drops."""
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


def leakage_note(train: Sequence[Case], cases: Sequence[Case]) -> tuple[str, ...]:
    """How much of what the cases test the training split holds, as a note; none where there is no training split."""
    if not train:
        return ()
    subjects = {_key(_subject(case) or "") for case in cases}
    known = {_key(_subject(case) or "") for case in train}
    asked = _questions(cases)
    return (
        f"of {len(subjects)} test subjects {len(subjects & known)} occur in the training split, and of {len(asked)} "
        f"test questions {len(asked & _questions(train))}",
    )


def drop_leaking(train: Sequence[Case], cases: Sequence[Case], dropped: Counter[str]) -> list[Case]:
    """The training cases whose subject occurs in no question that the cases ask, and that ask none of these questions;
    counts the others."""
    mentioned = {mention for case in cases for probe in case.probes for mention in _mentions(probe.prompt)}
    asked = _questions(cases)
    unknown = [case for case in train if _key(_subject(case) or "") not in mentioned]
    kept = [case for case in unknown if asked.isdisjoint(_questions([case]))]
    dropped["training case about a subject that a test asks about"] += len(train) - len(unknown)
    dropped["training case with a question that a test asks"] += len(unknown) - len(kept)
    return kept


def _questions(cases: Sequence[Case]) -> set[str]:
    return {_key(probe.prompt) for case in cases for probe in case.probes}


def _key(text: str) -> str:
    """What is compared: the words, whatever their case and what stands between them."""
    return " ".join(_words(text))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _mentions(prompt: str, longest: int = 12) -> Iterator[str]:
    """Every run of up to so many words."""
    words = _words(prompt)
    for start in range(len(words)):
        for end in range(start + 1, min(start + longest, len(words)) + 1):
            yield " ".join(words[start:end])


def _subject(case: Case) -> str | None:
    return case.edits[0].subject


def _first(cases: Sequence[Case]) -> list[Case]:
    """The first case of each subject, in file order: KDPO's rule as its text has it."""
    return list({_subject(case): case for case in reversed(cases)}.values())[::-1]


def _odd_toggle_last(cases: Sequence[Case]) -> list[Case]:
    """A subject seen again removes what was kept of it: odd counts keep the last, even counts nothing (KDPO's
    WikiBio)."""
    kept: dict[str | None, Case] = {}
    for case in cases:
        if kept.pop(_subject(case), None) is None:
            kept[_subject(case)] = case
    return list(kept.values())


DEDUP: dict[str, Callable[[Sequence[Case]], list[Case]]] = {
    "first": _first,
    "none": list,
    "odd_toggle_last": _odd_toggle_last,
}
