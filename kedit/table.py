"""Tables, computed from rows: python -m kedit.table [SWEEP or DIRECTORY]. Needs no GPU and no model, and computes no
score.

A score is the mean over cases of [the mean over the case's groups of (the mean over the group's probes)], times 100
(METRICS §3.7 A, "case_macro"); a case without a probe of a kind does not count for that kind, and every mean carries
its N.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kedit.errors import InputError
from kedit.journal import META, ROWS, STEPS
from kedit.metrics import harmonic_mean

Score = Literal["token", "exact", "generate"]  # teacher-forced token match, teacher-forced exact match, free generation
Merge = Literal["case_macro", "group_macro", "prompt_micro"]

KINDS = {
    "reliability": "edit success",
    "generality": "generality",
    "portability": "portability",
    "locality": "locality",
    "fluency": "fluency",
}
SAME = (
    "model",
    "dataset",
    "setting",
    "effective_T",
    "order_seed",
    "overrides",
    "versions",
)  # a table mixes none of these
FLOOR = "(unedited)"
BROKEN = {
    "edit success": "edit\nsuccess",
    "generality": "gener-\nality",
    "portability": "porta-\nbility",
    "locality": "loca-\nlity",
}  # 80 columns


@dataclass(frozen=True)
class Cell:
    """One finished (or half-finished) run."""

    directory: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.directory / META).read_text())

    @cached_property
    def rows(self) -> pd.DataFrame:
        return pd.read_json(self.directory / ROWS, lines=True, dtype={"case": str, "gold": str, "pred": str})

    @cached_property
    def steps(self) -> pd.DataFrame:
        return pd.read_json(self.directory / STEPS, lines=True)


def summary(
    rows: pd.DataFrame | Sequence[dict[str, Any]], *, score: Score = "token", merge: Merge = "case_macro"
) -> pd.DataFrame:
    """Scores of one run: a row for the unedited model and one for each T; columns as in the papers, and n_<kind>."""
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows)
    tests = frame[frame["when"] == "test"]
    lines = [_line(FLOOR, 0, frame[frame["when"] == "before"], score, merge)] if len(frame) else []
    lines += [_line("edited", int(T), group, score, merge) for T, group in tests.groupby("T")]
    return pd.DataFrame(lines)


def _line(model: str, T: int, rows: pd.DataFrame, score: Score, merge: Merge) -> dict[str, Any]:
    line: dict[str, Any] = {"model": model, "T": T}
    for kind, name in KINDS.items():
        values = per_case(rows, kind, score, merge)
        line |= {name: float(values.mean()), f"n_{kind}": len(values)}
    parts = [line[KINDS[kind]] for kind in ("reliability", "locality", "portability") if line[f"n_{kind}"]]
    return line | {"HM": harmonic_mean(parts) if parts else math.nan, "N": rows["case"].nunique()}


def per_case(rows: pd.DataFrame, kind: str, score: Score = "token", merge: Merge = "case_macro") -> pd.Series:
    """One value (x100) for each case that has probes of this kind; for other merges one for each group or probe."""
    column, scoring = {"token": ("token", "forced"), "exact": ("exact", "forced"), "generate": ("exact", "generate")}[
        score
    ]
    if kind == "fluency":
        column, scoring = "entropy", "generate"
    chosen = rows[(rows["kind"] == kind) & (rows["scoring"] == scoring)]
    if chosen.empty or column not in chosen:
        return pd.Series(dtype=float)
    if merge == "prompt_micro":
        return 100 * chosen[column]
    keys = ["step", "case"]
    groups = chosen.groupby([*keys, "group"])[column].mean()
    return 100 * (groups.groupby("group").mean() if merge == "group_macro" else groups.groupby(keys).mean())


# --- several cells ---------------------------------------------------------------------------------------------------


def find(place: str | Path) -> list[Cell]:
    """The cells of a sweep (a name under the runs folder) or below a directory."""
    runs = Path(os.environ.get("KEDIT_RUNS", "runs"))
    root = runs / place if (runs / place).is_dir() else Path(place)
    cells = [Cell(path.parent) for path in sorted(root.rglob(META)) if (path.parent / ROWS).exists()]
    if not cells:
        raise InputError(f"{root}: no run there; give a sweep that has run, or a directory below {runs}/")
    return cells


def tables(
    cells: Sequence[Cell], *, score: Score = "token", merge: Merge = "case_macro"
) -> Iterator[tuple[str, pd.DataFrame]]:
    """(caption, table) for each set of cells that may stand together: same model, data, setting, T, options and
    versions."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(json.dumps([cell.meta.get(key) for key in SAME], sort_keys=True), []).append(cell)
    for group in groups.values():
        lines = pd.concat([_cell_lines(cell, score, merge) for cell in group])
        yield _caption(group, lines, score, merge), _pool(lines)


def _cell_lines(cell: Cell, score: Score, merge: Merge) -> pd.DataFrame:
    lines = summary(cell.rows, score=score, merge=merge)
    names = [FLOOR if model == FLOOR else cell.meta["editor"] for model in lines["model"]]
    seconds = [_seconds(cell, T) for T in lines["T"]]
    perplexity = [_perplexity(cell, T) for T in lines["T"]]
    return lines.assign(model=names, seconds=seconds, perplexity=perplexity, seed=cell.meta["seed"])


def _seconds(cell: Cell, T: int) -> float:
    """Seconds of editing up to the last test of this T."""
    tested = cell.rows[(cell.rows["when"] == "test") & (cell.rows["T"] == T)] if T else cell.rows.iloc[:0]
    return float(cell.steps[cell.steps["step"] <= tested["step"].max()]["edit_s"].sum()) if len(tested) else math.nan


def _perplexity(cell: Cell, T: int) -> float:
    """Of the held-out text, at the last test of this T; unknown where each test is followed by a restore."""
    if "perplexity" not in cell.steps:
        return math.nan
    last = cell.steps[(cell.steps["edits_so_far"] == T) & cell.steps["perplexity"].notna()]
    return float(last["perplexity"].iloc[-1]) if len(last) else math.nan


def _pool(lines: pd.DataFrame) -> pd.DataFrame:
    """Mean over edit seeds; the floor is one line, first."""
    pooled = lines.groupby(["model", "T"], sort=False).mean(numeric_only=True).drop(columns="seed")
    pooled["seeds"] = lines.groupby(["model", "T"], sort=False)["seed"].nunique()
    order = [*(key for key in pooled.index if key[0] == FLOOR), *(key for key in pooled.index if key[0] != FLOOR)]
    columns = [*KINDS.values(), "HM", "N", "seconds", "perplexity", "seeds"]
    return pooled.loc[order, [*columns, *(c for c in pooled if c.startswith("n_"))]].reset_index()


def _caption(cells: Sequence[Cell], lines: pd.DataFrame, score: Score, merge: Merge) -> str:
    meta = cells[0].meta
    said = {
        "token": "teacher-forced token match",
        "exact": "teacher-forced exact match",
        "generate": "free greedy generation",
    }[score]
    parts = [
        f"{meta['model']} on {meta['dataset']}, {meta['setting']}, effective T={meta['effective_T']}",
        f"{said} x100, {merge}, N cases",
        "edit success = reliability; locality = agreement with the unedited model",
        "HM of edit success, locality and portability",
        "fluency = n-gram entropy x100; seconds = editing up to T",
    ]
    kinds = [kind for kind in KINDS if lines[f"n_{kind}"].max() and set(lines[f"n_{kind}"]) != set(lines["N"])]
    parts += [f"{KINDS[kind]} has N={'/'.join(str(n) for n in lines[f'n_{kind}'].unique())}" for kind in kinds]
    collapsed = lines.groupby("model")["perplexity"].max() > 2 * lines[lines["model"] == FLOOR]["perplexity"].max()
    parts += [f"perplexity of a held-out text more than doubled under {model}" for model in collapsed.index[collapsed]]
    failed = {cell.meta["editor"]: int(cell.steps.get("failed", pd.Series(dtype=int)).sum()) for cell in cells}
    parts += [f"{count} edits of {editor} failed and were undone" for editor, count in failed.items() if count]
    parts += [f"dropped: {n} {what}" for what, n in meta["data"]["dropped"].items()] + list(meta["data"]["notes"])
    if "noise_floor" in meta:
        dtype = meta["model_is"]["dtype"]
        parts.append(f"in {dtype} the unedited model agrees with itself on {100 * meta['noise_floor']:.1f} % of tokens")
    if meta["order_seed"] is not None:
        parts.append(f"order seed {meta['order_seed']}")
    if meta["overrides"]:
        parts.append(f"options: {meta['overrides']}")
    return "; ".join(parts)


# --- showing ---------------------------------------------------------------------------------------------------------


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers as printed: one decimal, a dash where there is none, no columns that say nothing."""
    visible = table[[c for c in table if not c.startswith("n_") and c != "perplexity"]]
    if visible["seeds"].max() == 1:
        visible = visible.drop(columns="seeds")
    whole = {"T", "N", "seeds"}
    return visible.apply(lambda column: column.map(lambda v: _text(v, column.name in whole))).astype(object)


def _text(value: Any, whole: bool) -> str:
    if isinstance(value, str):
        return value
    return "-" if pd.isna(value) else f"{value:.0f}" if whole else f"{value:.1f}"


def markdown(caption: str, table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] + ["--:"] * (len(table.columns) - 1), *shown_rows(table)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{caption}.\n"


def shown_rows(table: pd.DataFrame) -> list[list[str]]:
    return [[str(value) for value in row] for row in table.itertuples(index=False)]


def write(
    cells: Sequence[Cell], directory: Path, *, score: Score = "token", merge: Merge = "case_macro"
) -> list[tuple[str, pd.DataFrame]]:
    """table.md and table.csv in `directory`; returns what was written."""
    made = list(tables(cells, score=score, merge=merge))
    (directory / "table.md").write_text("\n".join(markdown(caption, shown(table)) for caption, table in made))
    pd.concat([table.assign(caption=caption) for caption, table in made]).to_csv(directory / "table.csv", index=False)
    return made


def show(made: Sequence[tuple[str, pd.DataFrame]]) -> None:
    """Print tables on the terminal."""
    console = Console()
    for caption, table in made:
        grid = Table(
            caption=Text(caption + "."), caption_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False
        )
        text = shown(table)
        for name in text.columns:
            grid.add_column(Text(BROKEN.get(name, name)), justify="left" if name == "model" else "right", no_wrap=True)
        for row in shown_rows(text):
            grid.add_row(*row)
        console.print(grid)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m kedit.table", description="Show the table of a sweep, from what has run."
    )
    parser.add_argument(
        "place", nargs="?", default="quickstart", help="a sweep's name, or a directory of runs (default: quickstart)"
    )
    parser.add_argument(
        "--scoring",
        choices=get_args(Score),
        default="token",
        help="teacher-forced token or exact match, or free generation",
    )
    parser.add_argument(
        "--merge", choices=get_args(Merge), default="case_macro", help="how probes become one number (METRICS §3.7)"
    )
    given = parser.parse_args()
    try:
        show(list(tables(find(given.place), score=given.scoring, merge=given.merge)))
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
