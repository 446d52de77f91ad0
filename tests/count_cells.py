"""Which printed numbers of the papers kedit's sweeps can fill, and what the others lack: python tests/count_cells.py.

A number is runnable if `kedit sweeps=NAME`, without another option, has a cell for it. Files and models that a machine
does not have are another matter: python -m kedit.status NAME says what is missing there.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd
import yaml

from kedit.common.axes import axis_values
from kedit.common.paths import ROOT
from kedit.papers import PAPERS, printed
from kedit.reports.table.fill_commands import has, why_not
from kedit.reports.table.layout import Layout, layouts
from kedit.results.measured import AVERAGE, KNOWEDIT_SETS
from kedit.results.samples import UNEDITED

RUNNABLE = "runnable"
COUNTED = "counted from the data files"
SINGLE = ("single", "blocks")  # blocks of one are single editing


@dataclass(frozen=True)
class Number:
    paper: str
    table: int
    cause: str  # RUNNABLE, or what it lacks
    cells: tuple[tuple[str, ...], ...]  # overrides of each


def numbers() -> Iterator[Number]:
    """Every printed number of every table that has a csv file in kedit/papers."""
    known = {(layout.paper, layout.number): layout for layout in layouts()}
    for paper in PAPERS:
        for table, rows in printed(paper).dropna(subset="value").groupby("table"):
            for record in rows.to_dict("records"):
                yield _number(paper, int(table), record, known.get((paper, int(table))))


def _number(paper: str, table: int, record: Mapping[str, Any], layout: Layout | None) -> Number:
    if layout is None:
        return Number(paper, table, COUNTED, ())
    if reason := why_not(record, layout) or _outside(record, layout):
        return Number(paper, table, reason.removeprefix("kedit "), ())
    return Number(paper, table, RUNNABLE, tuple(_cells(record, layout)))


def _outside(record: Mapping[str, Any], layout: Layout) -> str:
    """Why the sweep's own grid has no cell of this number; "" if it has."""
    if _setting(record["setting"], layout) is None:
        return "has the setting only by an option"
    T = record["T"]
    if layout.axes["T"] and pd.notna(T) and str(int(T)) not in layout.axes["T"]:
        return "has T only by an option"
    wanted = {"model": record["model"], "editor": _editor(record["editor"], layout)}
    return next((f"has the {key} only by an option" for key, one in wanted.items() if one not in layout.axes[key]), "")


def _setting(printed_one: str, layout: Layout) -> str | None:
    own = _choices("setting", layout)
    if not printed_one:  # the same in any: no edits
        return own[0]
    names = (printed_one, *SINGLE) if printed_one in SINGLE else (printed_one,)
    return next((name for name in names if name in own), None)


def _choices(group: str, layout: Layout) -> list[str]:
    """Those of a sweep's grid, or if it has no such axis the choice of its defaults."""
    config = _yaml(layout.sweep)
    axis = config["hydra"]["sweeper"]["params"].get(group)
    if axis is not None:
        return axis_values(axis)
    return [choice[f"override /{group}"] for choice in config["defaults"] if f"override /{group}" in choice]


@cache
def _yaml(sweep: str) -> Mapping[str, Any]:
    return yaml.safe_load((ROOT / "sweeps" / f"{sweep}.yaml").read_text(encoding="utf-8"))


def _editor(name: str, layout: Layout) -> str:
    runs = [editor for editor in layout.axes["editor"] if has("editor", editor)]
    if name == UNEDITED:
        return runs[0]
    return next((ours for ours, theirs in layout.same_as.items() if theirs == name and ours in runs), name)


def _cells(record: Mapping[str, Any], layout: Layout) -> Iterator[tuple[str, ...]]:
    datasets = KNOWEDIT_SETS if record["dataset"] == AVERAGE else (record["dataset"],)
    if layout.benchmarks:  # the table prints what was asked; cells have what was edited
        datasets = tuple(_choices("dataset", layout))
    for dataset in datasets:
        chosen = {"model": record["model"], "dataset": dataset, "editor": _editor(record["editor"], layout)}
        yield (f"sweeps={layout.sweep}", *(f"{key}={value}" for key, value in chosen.items()))


def table() -> str:
    """The counts, as docs/papers.md has them."""
    counts = Counter(number.cause for number in numbers())
    lines = [f"| {cause} | {n} |" for cause, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    return "\n".join(["| printed numbers | |", "|---|---:|", *lines, f"| all | {sum(counts.values())} |"])


def main() -> None:
    sys.stdout.write(table() + "\n")


if __name__ == "__main__":
    main()
