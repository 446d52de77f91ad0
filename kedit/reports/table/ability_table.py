"""The table of benchmarks, beside that of scores: one line for each editor and T, one column a benchmark."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from kedit.reports.table import formats, plain
from kedit.reports.table.captions import asked_of_benchmarks
from kedit.reports.table.formats import Grid, Line, TableCell
from kedit.results.abilities import abilities
from kedit.results.cells import Cell
from kedit.results.scores import UNEDITED_ROW

ERROR = "in brackets: lm-eval's standard error over questions"
_HEAD = ["model", "T"]


def tables(cells: Sequence[Cell]) -> Iterator[tuple[str, pd.DataFrame]]:
    """(caption, table) for each set of cells that may stand together, of those that were asked benchmarks; columns
    `<benchmark> <metric>` and `stderr_<...>`, means over edit seeds."""
    for group in plain.together(cells):
        asked = [cell for cell in group if len(abilities(cell))]
        if asked:
            lines = pd.concat([abilities(cell).assign(model=cell.meta["editor"]) for cell in asked])
            yield _caption(asked, lines), _pool(lines)


def _pool(lines: pd.DataFrame) -> pd.DataFrame:
    """The unedited model first, once."""
    lines = lines.assign(
        model=lines["model"].where(lines["T"] > 0, UNEDITED_ROW), column=lines["benchmark"] + " " + lines["metric"]
    )
    lines = pd.concat([lines[lines["T"] == 0], lines[lines["T"] > 0]])
    means = lines.groupby([*_HEAD, "column"], sort=False)[["value", "stderr"]].mean().unstack("column")
    values = means["value"].reindex(columns=list(dict.fromkeys(lines["column"])))
    table = values.assign(average=values.mean(axis=1, skipna=False)) if values.shape[1] > 1 else values
    errors = means["stderr"][list(values)].add_prefix("stderr_")
    places = list(dict.fromkeys(zip(lines["model"], lines["T"], strict=True)))
    return pd.concat([table, errors], axis=1).loc[places].rename_axis(columns=None).reset_index()


def _caption(cells: Sequence[Cell], lines: pd.DataFrame) -> str:
    parts = [plain.place(cells), *asked_of_benchmarks(cells, set(lines["benchmark"])), ERROR]
    return "; ".join(parts + ([f"options: {cells[0].meta['overrides']}"] if cells[0].meta["overrides"] else []))


def grid(caption: str, table: pd.DataFrame) -> Grid:
    columns = [name for name in table if name not in _HEAD and not name.startswith("stderr_")]
    lines = []
    for record in table.to_dict("records"):
        texts = [_text(record[name], record.get(f"stderr_{name}")) for name in columns]
        lines.append(Line((record["model"], str(record["T"])), tuple(map(TableCell, texts))))
    return Grid("", tuple(_HEAD), tuple((name,) for name in columns), tuple(lines), f"{caption}.")


def _text(value: float, stderr: float | None) -> str:
    if pd.isna(value):
        return formats.DASH
    return f"{value:.1f}" + ("" if stderr is None or pd.isna(stderr) else f" ({stderr:.1f})")


def write(cells: Sequence[Cell], directory: Path) -> None:
    """ability.md and ability.csv in `directory`, if benchmarks were asked."""
    plain.write_as("ability", list(tables(cells)), grid, directory)
