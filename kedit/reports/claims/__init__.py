"""The papers' headline claims, judged on their own numbers and on ours (docs/claims.md).

A claim is a function of the numbers that gives the comparisons it rests on; a verdict is computed from these, never
stored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Literal

import pandas as pd

from kedit.papers import PAPERS, printed
from kedit.reports.claims.estimates import Comparison
from kedit.reports.claims.numbers import Numbers

On = Literal["paper", "ours"]
CONFIRMED, PARTLY, NOT_CONFIRMED = "CONFIRMED", "PARTLY", "NOT CONFIRMED"
HOLDS, DOES_NOT, CANNOT_TELL, NOT_RUN = "holds", "does not", "cannot tell at this N", "not run"


@dataclass(frozen=True)
class Claim:
    """What a paper says of some of its tables, and how to compare its numbers."""

    id: str
    text: str
    source: str  # where the paper says it
    tables: tuple[int, ...]
    compare: Callable[[Numbers], list[Comparison]]


@dataclass(frozen=True)
class Verdict:
    """What the numbers say of a claim; `cells` are the rows of the frame that it rests on."""

    id: str
    text: str
    verdict: str
    comparisons: list[Comparison]
    cells: pd.DataFrame
    on: On
    paper: str
    source: str
    tables: tuple[int, ...]


def claim(text: str, *, source: str, tables: Sequence[int]) -> Callable[[Callable[[Numbers], list[Comparison]]], Claim]:
    """Make a claim of a function; its name is the claim's id."""
    return lambda compare: Claim(compare.__name__.replace("_", "-"), text, source, tuple(tables), compare)


def claims(paper: str) -> list[Claim]:
    """The paper's claims, in the order of their file."""
    module = import_module(f"kedit.reports.claims.{paper}_claims")
    return [thing for thing in vars(module).values() if isinstance(thing, Claim)]


def judge(frame: pd.DataFrame, paper: str, on: On = "paper") -> list[Verdict]:
    """A verdict for each claim of the paper, from the tidy frame of its printed numbers or of ours."""
    frame = frame.reset_index(drop=True)
    return [judge_one(found, frame, paper, on) for found in claims(paper)]


def judge_one(found: Claim, frame: pd.DataFrame, paper: str, on: On = "paper") -> Verdict:
    """A claim on printed numbers sees the tables it is about; on ours all that was run for the paper, those first."""
    rows = frame.assign(row=range(len(frame)), own=frame["table"].isin(found.tables))
    rows = rows[(rows["paper"] == paper) & (rows["own"] | (on == "ours"))].sort_values(
        "own", ascending=False, kind="stable"
    )
    editors = _editors(paper, found.tables)
    numbers = Numbers(rows, exact=on == "paper", printed_editors=editors, T_in_average=paper != "kedas")
    comparisons = found.compare(numbers)
    verdict = _on_paper(comparisons) if on == "paper" else _on_ours(comparisons)
    cells = frame.iloc[list(dict.fromkeys(cell for c in comparisons for cell in c.cells))]
    return Verdict(found.id, found.text, verdict, comparisons, cells, on, paper, found.source, found.tables)


@cache
def _editors(paper: str, tables: tuple[int, ...]) -> frozenset[str]:
    """Those that the paper's tables have, before anything is changed in a frame."""
    return frozenset(editor for table in tables for editor in printed(paper, table)["editor"])


def report(paper: str | None = None, measured: pd.DataFrame | None = None) -> list[Verdict]:
    """The verdicts on the printed numbers of the paper (null: of all); each followed by that on ours, if given."""
    lines = []
    for name in [paper] if paper else PAPERS:
        on_paper = judge(printed(name), name)
        on_ours = [[]] * len(on_paper) if measured is None else [[v] for v in judge(measured, name, "ours")]
        lines += [verdict for first, greater in zip(on_paper, on_ours, strict=True) for verdict in (first, *greater)]
    return lines


def _on_paper(comparisons: Sequence[Comparison]) -> str:
    """CONFIRMED: all are true. PARTLY: at least half. A missing number is not true."""
    true = sum(c.outcome is True for c in comparisons)
    if not true:
        return NOT_CONFIRMED
    return CONFIRMED if true == len(comparisons) else PARTLY if 2 * true >= len(comparisons) else NOT_CONFIRMED


def _on_ours(comparisons: Sequence[Comparison]) -> str:
    """One comparison that is surely false refutes a claim; it holds when all are surely true."""
    known = [c for c in comparisons if not c.missing]
    if any(c.outcome is False for c in known):
        return DOES_NOT
    if any(c.outcome is None for c in known):
        return CANNOT_TELL
    return HOLDS if len(known) == len(comparisons) else NOT_RUN
