"""Teacher forcing beside strict evaluation, of the same run: by kind of question, and the gap between the two.

What must not change has a column for each of its meanings: against the unedited model's forced tokens, its free tokens,
its free text, the gold answer by exact match, the gold answer by a judge.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from kedit.reports.table import plain
from kedit.reports.table.captions import closings
from kedit.reports.table.formats import Grid
from kedit.results.cells import Cell
from kedit.results.columns import COLUMNS
from kedit.results.scores import UNEDITED_ROW, summary
from kedit.results.strictness import judges_of, strict_rows, strictly_scored

ASKED = ("reliability", "generality", "portability", "efficacy", "paraphrase")
KEPT = ("locality", "neighborhood")
MEANINGS = ("same_tokens", "same_text", "gold_match", "gold_judged")
HEAD = ["model", "T"]
GAP = "gap = strict less forced score (the judged one if there is a judge)"


def tables(cells: Sequence[Cell]) -> Iterator[tuple[str, pd.DataFrame]]:
    """(caption, table) for each set of cells that may stand together, of those that were scored strictly; means over
    edit seeds."""
    for group in plain.together([cell for cell in cells if len(strict_rows(cell.rows))]):
        lines = pd.concat([_lines(cell) for cell in group])
        edited = lines[lines["model"] != UNEDITED_ROW]
        floor = lines[lines["model"] == UNEDITED_ROW].drop_duplicates("seed")
        groups = pd.concat([floor, edited]).groupby(HEAD, sort=False)
        pooled = groups.mean(numeric_only=True).drop(columns="seed").assign(seeds=groups["seed"].nunique())
        said = [
            plain.place(group),
            "forced = teacher-forced token match x100",
            GAP,
            *strictly_scored(group),
            *closings(group),
        ]
        yield "; ".join(said), pooled.reset_index()


def _lines(cell: Cell) -> pd.DataFrame:
    """One for the unedited model and one for each T."""
    scores = {score: summary(cell.rows, score=score, kinds=cell.kinds) for score in _scores(cell)}
    forced = scores["token"]
    names = [UNEDITED_ROW if name == UNEDITED_ROW else cell.meta["editor"] for name in forced["model"]]
    table = pd.DataFrame({"model": names, "T": forced["T"], "N": forced["N"], "seed": cell.meta["seed"]})
    for kind in (kind for kind in ASKED if COLUMNS[kind] in forced):
        name = COLUMNS[kind]
        table[f"{name}, forced"] = forced[name]
        table[f"{name}, exact match"] = scores["strict"][name]
        if "judged" in scores:
            table[f"{name}, judged"] = scores["judged"][name]
        table[f"{name}, gap"] = scores["judged" if "judged" in scores else "strict"][name] - forced[name]
    for kind in (kind for kind in KEPT if COLUMNS[kind] in forced):
        table[f"{kind}, forced"] = forced[COLUMNS[kind]]
        for meaning in (meaning for meaning in MEANINGS if meaning in scores):
            table[f"{kind}, {meaning.replace('_', ' ')}"] = scores[meaning][COLUMNS[kind]]
    return table.dropna(axis="columns", how="all")


def _scores(cell: Cell) -> list[str]:
    judged = bool(judges_of(cell.rows))
    meanings = [meaning for meaning in MEANINGS if meaning in cell.rows]
    return ["token", "strict", *(["judged"] if judged else []), *meanings]


def grid(caption: str, table: pd.DataFrame) -> Grid:
    return plain.stubbed(caption, table, HEAD)


def write(cells: Sequence[Cell], directory: Path) -> None:
    """strict.md and strict.csv in `directory`, if something was scored strictly."""
    plain.write_as("strict", list(tables(cells)), grid, directory)
