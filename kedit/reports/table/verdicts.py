"""What the papers claim, as tables: the verdict on the paper's numbers, that on ours, and what ours rests on."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kedit.papers import PAPERS
from kedit.reports.table.formats import Grid, Line, TableCell

CAPTION = (
    "Paper: the verdict on the paper's own printed numbers; ours: on what was run here, from the 95 % intervals: a "
    "comparison that the intervals leave open cannot be told at this N; numbers: how many of the measured numbers a "
    "verdict on ours rests on"
)


def grids(verdicts: Sequence[Any], home: Path = Path()) -> list[Grid]:
    """For each paper its claims and, where something was run, each comparison that our verdicts rest on."""
    papers = dict.fromkeys(verdict.paper for verdict in verdicts)
    made = []
    for name in papers:
        of_paper = [verdict for verdict in verdicts if verdict.paper == name]
        made.append(_grid(name, of_paper, home))
        judged = [verdict for verdict in of_paper if verdict.on == "ours" and len(verdict.cells)]
        made += [_rests(name, judged, home)] if judged else []
    return made


def frame(verdicts: Sequence[Any]) -> pd.DataFrame:
    """One line a verdict; the comparisons that it rests on as text."""
    lines = [
        {
            "paper": verdict.paper,
            "claim": verdict.id,
            "text": verdict.text,
            "source": verdict.source,
            "tables": " ".join(map(str, verdict.tables)),
            "on": verdict.on,
            "verdict": verdict.verdict,
            "comparisons": "; ".join(_outcomes(verdict)),
            "directories": " ".join(map(str, _directories(verdict.cells))),
        }
        for verdict in verdicts
    ]
    return pd.DataFrame(lines)


def _grid(paper: str, verdicts: Sequence[Any], home: Path) -> Grid:
    ours = {verdict.id: verdict for verdict in verdicts if verdict.on == "ours"}
    columns = (("says",), ("paper",), ("ours",), ("numbers",))
    lines = [_line(v, ours.get(v.id), home) for v in verdicts if v.on == "paper"]
    counts = " / ".join(
        f"{sum(v.verdict == name for v in verdicts if v.on == 'paper')} {name}"
        for name in dict.fromkeys(sorted(v.verdict for v in verdicts if v.on == "paper"))
    )
    said = f"{CAPTION}; on the paper's numbers: {counts}"
    return Grid(f"{PAPERS[paper]}: claims", ("claim",), columns, tuple(lines), f"{said}.", prose=("says",))


def _line(on_paper: Any, on_ours: Any | None, home: Path) -> Line:
    tables = f"{on_paper.source}; table {', '.join(map(str, on_paper.tables))}"
    entries = [TableCell(on_paper.text, hint=tables), TableCell(on_paper.verdict, hint="\n".join(_outcomes(on_paper)))]
    if on_ours is None:
        return Line((on_paper.id,), (*entries, TableCell("not run"), TableCell("0")))
    bold = on_ours.verdict in ("holds", "does not")
    link = _link(_directories(on_ours.cells), home)
    said = TableCell(on_ours.verdict, bold=bold, hint="\n".join(_outcomes(on_ours)), link=link)
    return Line((on_paper.id,), (*entries, said, TableCell(str(len(on_ours.cells)))))


def _rests(paper: str, verdicts: Sequence[Any], home: Path) -> Grid:
    """One line a comparison that something was run for."""
    lines = []
    for verdict in verdicts:
        for comparison in verdict.comparisons:
            paths = _directories(verdict.cells.loc[list(comparison.cells)])
            entries = (
                TableCell(_outcome(comparison)),
                TableCell(comparison.text),
                TableCell(_named(paths), link=_link(paths, home)),
            )
            lines += [Line((verdict.id,), entries)] if paths else []
    columns = (("outcome",), ("comparison",), ("cells",))
    said = "In brackets: the 95 % interval of a number; cells: below the folder of all runs, without seed and options."
    prose = ("comparison", "cells", "outcome")
    return Grid(f"{PAPERS[paper]}: what our verdicts rest on", ("claim",), columns, tuple(lines), said, prose=prose)


def _outcomes(verdict: Any) -> Iterator[str]:
    """Each comparison in words."""
    for comparison in verdict.comparisons:
        yield f"{_outcome(comparison)}: {comparison.text}"


def _outcome(comparison: Any) -> str:
    if comparison.missing:
        return f"not run ({', '.join(comparison.missing)})"
    return {True: "true", False: "false", None: "cannot tell"}[comparison.outcome]


def _named(directories: Sequence[Path]) -> str:
    """Each once, as sweep/model/dataset/editor/setting-T."""
    runs = Path(os.environ.get("KEDIT_RUNS", "runs")).resolve()
    parts = [Path(os.path.relpath(path, runs)).parts[:5] for path in directories]
    return ", ".join(dict.fromkeys("/".join(some) for some in parts))


def _link(directories: Sequence[Path], home: Path) -> str:
    """To the folder that holds them."""
    if not directories:
        return ""
    return Path(os.path.relpath(os.path.commonpath(directories), home.resolve())).as_posix() + "/"


def _directories(cells: pd.DataFrame) -> list[Path]:
    if "directories" not in cells:
        return []
    return sorted({Path(path).resolve() for paths in cells["directories"] for path in paths})
