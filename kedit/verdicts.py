"""What the papers claim, as a table: the verdict on the paper's numbers, that on ours, and what ours rests on."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kedit.formats import Entry, Grid, Line
from kedit.papers import PAPERS

CAPTION = (
    "paper: the verdict on the paper's own printed numbers; ours: on what was run here, from the 95 % intervals: a "
    "comparison that the intervals leave open cannot be told at this N; numbers: how many of the measured numbers a "
    "verdict on ours rests on"
)


def grids(verdicts: Sequence[Any], home: Path = Path()) -> list[Grid]:
    """One for each paper."""
    papers = dict.fromkeys(verdict.paper for verdict in verdicts)
    return [_grid(name, [verdict for verdict in verdicts if verdict.paper == name], home) for name in papers]


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
            "directories": " ".join(map(str, _directories(verdict))),
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
    return Grid(f"{PAPERS[paper]}: claims", ("claim",), columns, tuple(lines), f"{said}.")


def _line(on_paper: Any, on_ours: Any | None, home: Path) -> Line:
    tables = f"{on_paper.source}; table {', '.join(map(str, on_paper.tables))}"
    entries = [Entry(on_paper.text, hint=tables), Entry(on_paper.verdict, hint="\n".join(_outcomes(on_paper)))]
    if on_ours is None:
        return Line((on_paper.id,), (*entries, Entry("not run"), Entry("0")))
    paths = [Path(path) for path in _directories(on_ours)]
    link = Path(os.path.relpath(os.path.commonpath(paths), home.resolve())).as_posix() + "/" if paths else ""
    bold = on_ours.verdict in ("holds", "does not")
    said = Entry(on_ours.verdict, bold=bold, hint="\n".join(_outcomes(on_ours)), link=link)
    return Line((on_paper.id,), (*entries, said, Entry(str(len(on_ours.cells)))))


def _outcomes(verdict: Any) -> Iterator[str]:
    """Each comparison in words."""
    for comparison in verdict.comparisons:
        if comparison.missing:
            yield f"not run: {', '.join(comparison.missing)} ({comparison.text})"
        else:
            known = {True: "true", False: "false", None: "cannot tell"}[comparison.outcome]
            yield f"{known}: {comparison.text}"


def _directories(verdict: Any) -> list[str]:
    if "directories" not in verdict.cells:
        return []
    return sorted({str(Path(path).resolve()) for paths in verdict.cells["directories"] for path in paths})
