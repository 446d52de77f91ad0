"""Tables of what has run: python -m kedit.table [SWEEP or DIRECTORY]. Needs no GPU and no model."""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kedit.cells import Cell, find
from kedit.errors import InputError
from kedit.scores import COLUMNS, FLOOR, SCORE, Merge, Score, summary

# a table mixes none of these
SAME = ("model", "dataset", "setting", "order_seed", "overrides", "versions")
SCORING = {
    "token": "teacher-forced token match",
    "exact": "teacher-forced exact match",
    "generate": "free greedy generation",
    "magnitude": "probability of the right object less that of the competing one",
}
MEANING = {  # column -> what a caption says of it
    "edit success": "edit success = reliability",
    "locality": "locality = agreement with the unedited model",
    "HM": "HM of edit success, locality and portability",
    "Score": "Score = harmonic mean of efficacy, paraphrase and neighborhood",
    "fluency": "fluency = n-gram entropy x100",
    "consistency": "consistency = TF-IDF cosine with reference texts x100",
}
SUCCESS = "efficacy, paraphrase, neighborhood = is the right object likelier than the competing one, if one competes"
BRACKETS = "in brackets: half-width of the mean's 95 % confidence interval"
# headers that would not fit 80 columns
BROKEN = {
    "generality": "gener-\nality",
    "portability": "porta-\nbility",
    "locality": "loca-\nlity",
    "neighborhood": "neighbor-\nhood",
    "consistency": "consis-\ntency",
}


def tables(
    cells: Sequence[Cell], *, score: Score = "token", merge: Merge = "case_macro"
) -> Iterator[tuple[str, pd.DataFrame]]:
    """(caption, table) for each set of cells that may stand together: same model, data, setting, options, versions."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        same = [cell.meta.get(key) for key in SAME] + sorted(cell.kinds)
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(cell)
    for group in groups.values():
        lines = pd.concat([_lines(cell, score, merge) for cell in group])
        yield _caption(group, lines, score, merge), _pool(lines)


def _lines(cell: Cell, score: Score, merge: Merge) -> pd.DataFrame:
    lines = summary(cell.rows, score=score, merge=merge, kinds=cell.kinds)
    return lines.assign(
        model=[FLOOR if model == FLOOR else cell.meta["editor"] for model in lines["model"]],
        seconds=[_seconds(cell, T) for T in lines["T"]],
        perplexity=[_perplexity(cell, T) for T in lines["T"]],
        seed=cell.meta["seed"],
    )


def _seconds(cell: Cell, T: int) -> float:
    """Seconds of editing up to the last test of this T."""
    if not T:
        return math.nan
    last = cell.rows[(cell.rows["when"] == "test") & (cell.rows["T"] == T)]["step"].max()
    return float(cell.steps[cell.steps["step"] <= last]["edit_s"].sum())


def _perplexity(cell: Cell, T: int) -> float:
    """Of the held-out text, at the last test of this T; unknown where each test is followed by a restore."""
    if "perplexity" not in cell.steps:
        return math.nan
    last = cell.steps[(cell.steps["edits_so_far"] == T) & cell.steps["perplexity"].notna()]
    return float(last["perplexity"].iloc[-1]) if len(last) else math.nan


def _pool(lines: pd.DataFrame) -> pd.DataFrame:
    """Mean over edit seeds. The floor comes first, and once: on the largest set of cases that a cell has tested."""
    floor = lines[lines["model"] == FLOOR].sort_values("N").groupby("seed").tail(1)
    chosen = pd.concat([floor, lines[lines["model"] != FLOOR]])
    groups = chosen.groupby(["model", "T"], sort=False)
    pooled = groups.mean(numeric_only=True).assign(seeds=groups["seed"].nunique())
    order = [*COLUMNS.values(), "HM", "Score", "N", "seconds", "perplexity", "seeds"]
    order += [f"{part}_{kind}" for part in ("n", "ci") for kind in COLUMNS]
    return pooled[[name for name in order if name in pooled]].reset_index()


def _caption(cells: Sequence[Cell], lines: pd.DataFrame, score: Score, merge: Merge) -> str:
    meta, rome = cells[0].meta, any(kind in lines for kind in SCORE)
    horizons = "/".join(str(T) for T in sorted({cell.meta["effective_T"] for cell in cells}))
    parts = [
        f"{meta['model']} on {meta['dataset']}, {meta['setting']}, effective T={horizons}",
        f"{SCORING[score]} x100, {merge}, N cases",
        *([SUCCESS] if score == "token" and rome else []),
        *(said for name, said in MEANING.items() if name in lines),
        *([BRACKETS] if rome else []),
        "seconds = editing up to T",
    ]
    parts += _other_counts(lines) + _alarms(cells, lines)
    parts += [f"dropped: {n} {what}" for what, n in meta["data"]["dropped"].items()] + list(meta["data"]["notes"])
    if meta["order_seed"] is not None:
        parts.append(f"order seed {meta['order_seed']}")
    if meta["overrides"]:
        parts.append(f"options: {meta['overrides']}")
    return "; ".join(parts)


def _other_counts(lines: pd.DataFrame) -> list[str]:
    """Kinds that not every case has."""
    asked = [kind for kind in COLUMNS if f"n_{kind}" in lines]
    partial = [kind for kind in asked if lines[f"n_{kind}"].max() and (lines[f"n_{kind}"] != lines["N"]).any()]
    return [f"{COLUMNS[kind]} has N={'/'.join(str(n) for n in lines[f'n_{kind}'].unique())}" for kind in partial]


def _alarms(cells: Sequence[Cell], lines: pd.DataFrame) -> list[str]:
    """What a reader must know before believing a number."""
    worst = lines.groupby("model")["perplexity"].max()
    collapsed = worst.index[worst > 2 * worst.get(FLOOR, math.nan)]
    said = [f"perplexity of a held-out text more than doubled under {model}" for model in collapsed]
    for cell in cells:
        failed = int(cell.steps["failed"].sum()) if "failed" in cell.steps else 0
        if failed:
            said.append(f"{failed} edits of {cell.meta['editor']} (seed {cell.meta['seed']}) failed and were undone")
    meta = cells[0].meta
    if "noise_floor" in meta:
        agreement = f"{100 * meta['noise_floor']:.1f} % of tokens"
        said.append(f"in {meta['model_is']['dtype']} the unedited model agrees with itself on {agreement}")
    return said


# --- showing ---------------------------------------------------------------------------------------------------------


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers as printed: one decimal, a dash where there is none, half-widths behind, no columns that say nothing."""
    hidden = {"perplexity", *(f"{part}_{kind}" for part in ("n", "ci") for kind in COLUMNS)}
    hidden |= {"seeds"} if table["seeds"].max() == 1 else set()
    texts = {name: _texts(table[name]) for name in table if name not in hidden}
    for kind, name in COLUMNS.items():
        if f"ci_{kind}" in table:
            widths = _texts(table[f"ci_{kind}"])
            pairs = zip(texts[name], widths, strict=True)
            texts[name] = [mean if width == "-" else f"{mean} ({width})" for mean, width in pairs]
    return pd.DataFrame(texts)


def _texts(column: pd.Series) -> list[str]:
    decimals = 0 if column.name in ("T", "N", "seeds") else 1
    return [v if isinstance(v, str) else "-" if pd.isna(v) else f"{v:.{decimals}f}" for v in column]


def markdown(caption: str, table: pd.DataFrame) -> str:
    text = shown(table)
    lines = [list(text), ["---"] + ["--:"] * (len(text.columns) - 1), *text.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{caption}.\n"


def write(cells: Sequence[Cell], directory: Path) -> list[tuple[str, pd.DataFrame]]:
    """table.md and table.csv in `directory`; returns what was written."""
    made = list(tables(cells))
    (directory / "table.md").write_text("\n".join(markdown(caption, table) for caption, table in made))
    pd.concat([table.assign(caption=caption) for caption, table in made]).to_csv(directory / "table.csv", index=False)
    return made


def show(made: Sequence[tuple[str, pd.DataFrame]]) -> None:
    """Print tables on the terminal."""
    for caption, table in made:
        grid = Table(caption=Text(caption + "."), caption_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
        text = shown(table)
        for name in text:
            header = BROKEN.get(name, name.replace(" ", "\n"))
            grid.add_column(Text(header), justify="left" if name == "model" else "right", no_wrap=True)
        for row in text.to_numpy().tolist():
            grid.add_row(*row)
        console = Console()
        whole = Measurement.get(console, console.options.update(max_width=1000), grid).maximum
        Console(width=max(console.width, whole)).print(grid)  # a narrow terminal breaks lines: nothing is cut off


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kedit.table", description="Show the table of what has run.")
    parser.add_argument("place", nargs="?", default="quickstart", help="a sweep's name, or a directory of runs")
    parser.add_argument("--scoring", choices=get_args(Score), default="token", help="of the answers: " + str(SCORING))
    parser.add_argument("--merge", choices=get_args(Merge), default="case_macro", help="how probes become one number")
    given = parser.parse_args()
    try:
        show(list(tables(find(given.place), score=given.scoring, merge=given.merge)))
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
