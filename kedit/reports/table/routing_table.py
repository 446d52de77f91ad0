"""The table of what was recalled, beside that of scores: one line for each editor, T and kind of probe."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from kedit.reports.table import plain
from kedit.reports.table.formats import Grid
from kedit.results.cells import Cell
from kedit.results.routing import MEASURES, routing

MEANING = (
    "what was recalled, % of N questions",
    "recall@k, recall@1 = a string of the case's own edit is among those retrieved, is the nearest",
    "filter recall = one is accepted, where one is retrieved",
    "filter precision = of accepted strings, those of the own edit (all: also of those accepted for other kinds)",
    "injected = one stands in the prompt",
    "routed = the model read more than the question, or a gate opened (100 - routed of locality: the locality of "
    "routing)",
)
_HEAD = ["model", "T", "kind", "group"]


def tables(cells: Sequence[Cell]) -> Iterator[tuple[str, pd.DataFrame]]:
    """(caption, table) for each set of cells that may stand together, of those that recall from a memory; means over
    edit seeds."""
    for group in plain.together(cells):
        found = [(cell, routing(cell).assign(model=cell.meta["editor"], seed=cell.meta["seed"])) for cell in group]
        recalling = [(cell, lines) for cell, lines in found if len(lines)]
        if recalling:
            lines = pd.concat([lines for _, lines in recalling])
            yield _caption([cell for cell, _ in recalling]), _pool(lines)


def _pool(lines: pd.DataFrame) -> pd.DataFrame:
    groups = lines.groupby(_HEAD, sort=False)
    pooled = groups[["N", *MEASURES]].mean().assign(seeds=groups["seed"].nunique())
    return pooled.reset_index()


def _caption(cells: Sequence[Cell]) -> str:
    by = sorted({cell.config.get("eval", {}).get("routed_by", "prompt") for cell in cells} - {"prompt"})
    parts = [plain.place(cells), *MEANING, *(f"looked up by eval.routed_by={one}" for one in by)]
    return "; ".join(parts + ([f"options: {cells[0].meta['overrides']}"] if cells[0].meta["overrides"] else []))


def grid(caption: str, table: pd.DataFrame) -> Grid:
    return plain.stubbed(caption, table, _HEAD)


def write(cells: Sequence[Cell], directory: Path) -> None:
    """routing.md and routing.csv in `directory`, where something was recalled."""
    plain.write_as("routing", list(tables(cells)), grid, directory)
