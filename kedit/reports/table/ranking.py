"""Which number of a table is the best, and which the second best."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from kedit.reports.table.formats import TableCell
from kedit.reports.table.layout import Block, Position
from kedit.reports.table.significance import MARK, tied
from kedit.results.samples import COSTS, UNEDITED

TidyRow = Mapping[str, Any]
GROUP = ("model", "setting", "T", "dataset", "metric")  # what is ranked: editors on the same
BOLD = (
    "bold: the best editor on the same model, setting, T, dataset and metric, underlined: the second best of three or "
    "more (none beside a shared best), by the digits shown; the unedited model takes no part"
)


def ranked(
    block: Block, entry: Callable[[TidyRow], TableCell], text: Callable[[TidyRow], str]
) -> dict[tuple[Position, Position], TableCell]:
    """Each place's entry, marked: the best, the second best, those that are not significantly worse than the best.
    `text` is what is compared, empty where there is no number."""
    groups: dict[Position, list[tuple[Position, Position]]] = {}
    for at, record in block.records.items():
        if text(record) and record["editor"] != UNEDITED:
            group = tuple(None if pd.isna(record[key]) else record[key] for key in GROUP)
            groups.setdefault(group, []).append(at)
    marks: dict[tuple[Position, Position], tuple[bool, bool]] = {}
    close: set[tuple[Position, Position]] = set()
    for group, places in groups.items():
        sign = -1 if group[-1] in COSTS else 1  # less of a cost is better
        marks |= zip(places, ranks([sign * float(text(block.records[at])) for at in places]), strict=True)
        numbers = {at: (block.records[at]["value"], block.records[at].get("replicates")) for at in places}
        close |= {at for at in tied(numbers, sign) if not marks[at][0]}
    found = {at: entry(record) for at, record in block.records.items()}
    for at, (best, second) in marks.items():
        found[at] = replace(found[at], bold=best, underline=second, mark=MARK if at in close else "")
    return found


def ranks(values: Sequence[float]) -> Iterator[tuple[bool, bool]]:
    """(best, second best) of each: all that share the best; all that share the second, of three or more, where one
    alone is the best. So does KDPO underline."""
    best = max(values)
    below = [value for value in values if value < best]
    second = max(below) if below and len(values) > 2 and values.count(best) == 1 else math.nan
    for value in values:
        yield value == best and len(values) > 1, value == second
