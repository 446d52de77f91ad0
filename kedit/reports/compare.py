"""Any cells or sweeps side by side, one line each: python -m kedit.reports.compare A B ...

Its columns are the options in which they differ (lr=1e-3 beside lr=2e-3), then the scores of each one's last test.
Needs no GPU and no model. Seeds of the same options are one line.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from kedit.common.errors import InputError
from kedit.common.terminal import use_safe_output
from kedit.evaluation.metrics import captions
from kedit.reports.differences import CHOICES, Row, differing, provenance, rows_of
from kedit.reports.table import formats
from kedit.reports.table.formats import DASH, Grid, Line, TableCell
from kedit.reports.table.significance import MARK, tied
from kedit.reports.table.significance import SAID as SIGNIFICANCE
from kedit.reports.table.table_cells import counted, of_each_seed
from kedit.results.cells import Cell, find, tested
from kedit.results.columns import COLUMNS, meanings
from kedit.results.measured import numbers_of
from kedit.results.names import both_names
from kedit.results.samples import UNEDITED, Sample, samples, tested_T
from kedit.results.scores import UNEDITED_ROW, Score

FORMATS = {".md": "markdown", ".tex": "latex", ".csv": "csv"}
SCORES = {name.lower().replace(" ", "_"): name for name in (*COLUMNS.values(), "HM")}  # metric -> column
BOLD = "bold: the best of those tested on the same cases after the same number of edits"
WIDTH = "in brackets: half-width of the 95 % bootstrap interval over cases, and over seeds where there are several"


@dataclass(frozen=True, eq=False)
class Scored:
    """One line: what tells it from the others, and what it scored."""

    row: Row
    sample: Sample

    @property
    def unedited(self) -> bool:
        return self.sample.key.editor == UNEDITED

    @cached_property
    def rivals(self) -> tuple[Any, ...]:
        """Lines of one such key are compared: the same cases of the same seeds, after as many edits."""
        place = self.sample.key._replace(editor="")
        return (*place, *((seed, *values.index) for seed, values in sorted(self.sample.seeds.items())))

    @property
    def seconds(self) -> float:
        """Seconds of editing, mean over seeds."""
        if self.unedited:
            return math.nan
        T = tested_T(self.sample)
        spent = [float(cell.steps_to(T)["edit_s"].sum()) for cell in self.sample.cells]
        return sum(spent) / len(spent)

    @cached_property
    def numbers(self) -> dict[str, dict[str, Any]]:
        """For each metric that it has: value, interval, cases, seeds, bootstrap replicates."""
        seeds = len(self.sample.seeds)
        return {number["metric"]: number | {"seeds": seeds} for number in numbers_of(self.sample)}


def side_by_side(cells: Sequence[Cell], score: Score = "token", *, checkpoints: bool = False) -> list[Scored]:
    """A line for each set of cells that differ in the seed alone, at its last test (`checkpoints`: at each of them);
    first the unedited model, once for each model and dataset."""
    edited: list[Scored] = []
    unedited: dict[tuple[str, str], Scored] = {}
    for row in rows_of(cells):
        found = samples(row.cells, scoring=score)
        last = max(sample.key.T or 0 for sample in found)
        for sample in found:
            if sample.key.editor != UNEDITED and (checkpoints or last == sample.key.T):
                edited.append(Scored(_at(row, sample), sample))
            elif sample.key.editor == UNEDITED and last == sample.key.T:
                place = (sample.key.model, sample.key.dataset)
                known = unedited.get(place)
                if known is None or _cases(sample) > _cases(known.sample):
                    unedited[place] = Scored(row, sample)
    names = differing([line.row for line in edited])
    return [*unedited.values(), *sorted(edited, key=lambda line: [_natural(line.row[name]) for name in names])]


def _at(row: Row, sample: Sample) -> Row:
    """The row at one of its tests."""
    return replace(row, options={**row.options, "T": sample.key.T})


def _cases(sample: Sample) -> int:
    return sum(map(len, sample.seeds.values()))


def _natural(text: str) -> list[tuple[int, float, str]]:
    """Numbers by their size, other texts by their letters."""
    try:
        return [(0, float(text), "")]
    except ValueError:
        parts = re.split(r"(\d+)", text)
        return [(1, float(part), "") if part.isdigit() else (2, 0.0, part) for part in parts]


# --- the table -------------------------------------------------------------------------------------------------------


def grid(lines: Sequence[Scored], score: Score = "token", *, intervals: bool = False, home: Path | None = None) -> Grid:
    """The lines as a table; without anything that differs, an editor's name tells what a line is. `home`: the folder
    of a page, whose numbers link to their cells."""
    edited = [line.row for line in lines if not line.unedited]
    names = differing(edited) or ["editor"]
    shown = [metric for metric in SCORES if any(metric in line.numbers for line in lines)]
    numbers = {metric: _entries(lines, metric, intervals) for metric in shown}
    several = any(len(line.sample.seeds) > 1 for line in lines)
    columns = [*(SCORES[metric] for metric in shown), "N", *(["seeds"] if several else []), "seconds"]
    made = []
    for i, line in enumerate(lines):
        seeds = len(line.sample.seeds)
        costs = [counted({"n": _cases(line.sample), "seeds": seeds}), *([str(seeds)] if several else [])]
        costs.append(DASH if math.isnan(line.seconds) else f"{line.seconds:.1f}")
        entries = tuple([*(numbers[metric][i] for metric in shown), *map(TableCell, costs)])
        if home and not line.unedited:
            entries = tuple(replace(entry, link=_link(line.row, home)) for entry in entries)
        made.append(Line(_head(line, names, edited), entries))
    return Grid(
        "",
        tuple(names),
        tuple((name,) for name in columns),
        tuple(made),
        _caption(lines, names, shown, score, intervals),
    )


def _link(row: Row, home: Path) -> str:
    """To the cell; of several to the folder that holds them."""
    paths = [cell.directory.resolve() for cell in row.cells]
    common = paths[0] if len(paths) == 1 else os.path.commonpath(paths)
    return Path(os.path.relpath(common, home.resolve())).as_posix() + "/"


def _head(line: Scored, names: Sequence[str], edited: Sequence[Row]) -> tuple[str, ...]:
    if not line.unedited:
        return tuple(both_names(line.row[name]) if name == "editor" else line.row[name] for name in names)
    place = [{"model": line.row["model"], "dataset": line.row["dataset"], "T": "0"}.get(name, "") for name in names]
    free = next((i for i, name in enumerate(names) if not place[i]), None)
    if free is None:
        return (f"{place[0]} {UNEDITED_ROW}", *place[1:])
    place[free] = UNEDITED_ROW
    return tuple(place)


def _entries(lines: Sequence[Scored], metric: str, intervals: bool) -> list[TableCell]:
    """One column; the best of each set of rivals is bold, what is not significantly worse is marked."""
    numbers = {i: line.numbers[metric] for i, line in enumerate(lines) if metric in line.numbers}
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i in numbers:
        if not lines[i].unedited:
            groups.setdefault(lines[i].rivals, []).append(i)
    best, close = set(), set()
    for group in (group for group in groups.values() if len(group) > 1):
        top = max(round(numbers[i]["value"], 1) for i in group)
        best |= {i for i in group if round(numbers[i]["value"], 1) == top}
        close |= tied({i: (numbers[i]["value"], numbers[i]["replicates"]) for i in group})
    return [
        _entry(numbers[i], intervals, bold=i in best, mark=MARK * (i in close - best))
        if i in numbers
        else TableCell(DASH)
        for i in range(len(lines))
    ]


def _entry(number: dict[str, Any], intervals: bool, *, bold: bool, mark: str) -> TableCell:
    known = math.isfinite(number["low"])
    width = f" ({(number['high'] - number['low']) / 2:.1f})" if intervals and known else ""
    ends = f", 95 % interval {number['low']:.2f} to {number['high']:.2f}" if known else ""
    hint = f"N={counted(number)} cases{of_each_seed(number)}{ends}"
    return TableCell(f"{number['value']:.1f}{width}", bold=bold, mark=mark, hint=hint)


def _caption(lines: Sequence[Scored], names: Sequence[str], shown: Sequence[str], score: Score, intervals: bool) -> str:
    edited = [line.row for line in lines if not line.unedited]
    same = [f"{name}={edited[0][name]}" for name in CHOICES if name not in names]
    seeds = sorted({seed for line in lines for seed in line.sample.seeds})
    said = [
        ", ".join([*same, f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"]),
        f"{captions()[score]} x100, N cases{' in each seed' if len(seeds) > 1 else ''}",
        *(text for name, text in meanings().items() if name.lower().replace(" ", "_") in shown),
        "seconds = editing",
        *([WIDTH] if intervals else []),
        BOLD,
        SIGNIFICANCE,
    ]
    differ = provenance(edited)
    said += [f"not made alike: they also differ in {', '.join(differ)}"] if differ else []
    return "; ".join(said) + "."


def frame(lines: Sequence[Scored]) -> pd.DataFrame:
    """The same as numbers: options, then each score with its interval."""
    edited = [line.row for line in lines if not line.unedited]
    names = list(dict.fromkeys([*CHOICES, *differing(edited)]))
    return pd.DataFrame([dict(_numbers(line, names)) for line in lines])


def _numbers(line: Scored, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for name in names:
        yield name, UNEDITED_ROW if line.unedited and name == "editor" else line.row[name]
    for metric, column in SCORES.items():
        if metric in line.numbers:
            number = line.numbers[metric]
            yield column, number["value"]
            yield f"low_{column}", number["low"]
            yield f"high_{column}", number["high"]
    yield "N", _cases(line.sample) / len(line.sample.seeds)
    yield "seeds", len(line.sample.seeds)
    yield "seconds", line.seconds
    yield "directories", " ".join(str(cell.directory) for cell in line.row.cells)


def show(cells: Sequence[Cell], score: Score = "token") -> None:
    """Print cells side by side."""
    formats.show([grid(side_by_side(cells, score), score)])


def main() -> None:
    use_safe_output()
    parser = argparse.ArgumentParser(prog="python -m kedit.reports.compare", description=str(__doc__))
    parser.add_argument("places", nargs="+", metavar="PLACE", help="a sweep's name, or a directory of runs")
    parser.add_argument("--scoring", choices=tuple(captions()), default="token", help="as of python -m kedit.table")
    parser.add_argument("--checkpoints", action="store_true", help="a line for each test, not only for the last")
    parser.add_argument("--intervals", action="store_true", help="half-widths of 95 %% intervals in brackets")
    parser.add_argument("--format", choices=("terminal", *FORMATS.values()), help="default: by the ending of --out")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there")
    given = parser.parse_args()
    try:
        lines = side_by_side(_cells(given.places), given.scoring, checkpoints=given.checkpoints)
        _write(lines, given)
    except InputError as error:
        sys.exit(str(error))


def _cells(places: Sequence[str]) -> list[Cell]:
    """The cells of all places, each once."""
    cells = {cell.directory.resolve(): cell for place in places for cell in find(place)}
    return tested(list(cells.values()))


def _write(lines: Sequence[Scored], given: argparse.Namespace) -> None:
    form = given.format or (FORMATS.get(given.out.suffix, "markdown") if given.out else "terminal")
    made = grid(lines, given.scoring, intervals=given.intervals)
    if form == "terminal" and not given.out:
        formats.show([made])
        return
    writers = {"latex": formats.latex, "markdown": formats.markdown, "terminal": formats.markdown}
    text = frame(lines).to_csv(index=False) if form == "csv" else writers[form](made)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{given.out}\n" if given.out else text)


if __name__ == "__main__":
    main()
