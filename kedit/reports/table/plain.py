"""The table of any runs, shown after each: editors down, metrics across; of no paper's layout."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kedit.evaluation.metrics import metrics
from kedit.reports.table import formats
from kedit.reports.table.captions import closings, encoders, noise, numbers
from kedit.reports.table.formats import Grid, Line, TableCell
from kedit.reports.table.significance import MARK, tied
from kedit.reports.table.significance import SAID as SIGNIFICANCE
from kedit.results.cells import SAME, Cell
from kedit.results.columns import COLUMNS, SCORE, meanings
from kedit.results.names import both_names
from kedit.results.samples import UNEDITED, samples, tested_T
from kedit.results.scores import UNEDITED_ROW, Merge, Score, summary
from kedit.results.strictness import strictly_scored

SUCCESS = "efficacy, paraphrase, neighborhood = is the right object likelier than the competing one, if one competes"
BEST, TIED = "best", "tied"
BOLD = "bold: the best editor of its T"
BRACKETS = "in brackets: half-width of the mean's 95 % confidence interval"


def tables(
    cells: Sequence[Cell], *, score: Score = "token", merge: Merge = "case_macro"
) -> Iterator[tuple[str, pd.DataFrame]]:
    """(caption, table) for each set of cells that may stand together: same model, data, setting, options, versions."""
    for group in together(cells):
        lines = pd.concat([_lines(cell, score, merge) for cell in group])
        table = _pool(lines)
        if merge == "case_macro":
            table = _with_ties(table, group, score)
        yield _caption(group, lines, score, merge), table


def together(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells in sets, each of those that may stand in one table."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        same = [cell.meta.get(key) for key in SAME] + sorted(cell.kinds)
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(cell)
    return list(groups.values())


def _lines(cell: Cell, score: Score, merge: Merge) -> pd.DataFrame:
    lines = summary(cell.rows, score=score, merge=merge, kinds=cell.kinds)
    return lines.assign(
        model=[UNEDITED_ROW if model == UNEDITED_ROW else cell.meta["editor"] for model in lines["model"]],
        seconds=[_seconds(cell, T) for T in lines["T"]],
        perplexity=[_perplexity(cell, T) for T in lines["T"]],
        seed=cell.meta["seed"],
    )


def _seconds(cell: Cell, T: int) -> float:
    """Seconds of editing up to the last test of this T."""
    if not T:
        return math.nan
    return float(cell.steps_to(T)["edit_s"].sum())


def _perplexity(cell: Cell, T: int) -> float:
    """Perplexity of the held-out text, at the last test of this T; unknown where each test is followed by a restore."""
    if "perplexity" not in cell.steps:
        return math.nan
    last = cell.steps[(cell.steps["edits_so_far"] == T) & cell.steps["perplexity"].notna()]
    return float(last["perplexity"].iloc[-1]) if len(last) else math.nan


def _pool(lines: pd.DataFrame) -> pd.DataFrame:
    """Mean over edit seeds. The unedited model comes first, and once: on the largest set of cases that a cell has
    tested; then the editors, the one with the best HM (or Score) at its last T first."""
    floor = lines[lines["model"] == UNEDITED_ROW].sort_values("N").groupby("seed").tail(1)
    chosen = pd.concat([floor, lines[lines["model"] != UNEDITED_ROW]])
    groups = chosen.groupby(["model", "T"], sort=False)
    pooled = groups.mean(numeric_only=True).assign(seeds=groups["seed"].nunique())
    order = [*COLUMNS.values(), "HM", "Score", "N", "seconds", "perplexity", "seeds"]
    order += [f"{part}_{kind}" for part in ("n", "ci") for kind in COLUMNS]
    return _sorted(pooled[[name for name in order if name in pooled]].reset_index())


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    """Editors by their HM, or their Score where there is none, at the last T; of one editor by T."""
    ranked = next((table[name] for name in ("HM", "Score") if name in table), None)
    if ranked is None:
        return table
    last = table.assign(ranked=ranked).sort_values("T").groupby("model")["ranked"].agg(lambda at: at.iloc[-1])
    order = table["model"].map(last).where(table["model"] != UNEDITED_ROW, math.inf)
    return (
        table.assign(order=order)
        .sort_values(["order", "model", "T"], ascending=[False, True, True], kind="stable")
        .drop(columns="order")
        .reset_index(drop=True)
    )


def _with_ties(table: pd.DataFrame, cells: Sequence[Cell], score: Score) -> pd.DataFrame:
    """With columns tied_<score>: is an editor's score not significantly worse than the best one's of its T?"""
    if len({cell.meta["editor"] for cell in cells}) < 2:
        return table
    numbers: dict[tuple[int, str], dict[str, tuple[float, Any]]] = {}
    for sample in samples(cells, scoring=score):
        if sample.key.editor != UNEDITED:
            for i, metric in enumerate(sample.metrics):
                drawn = sample.replicates[:, i] if sample.n[i] > 1 else None
                place = (tested_T(sample), metric)
                numbers.setdefault(place, {})[sample.key.editor] = (float(sample.values[i]), drawn)
    close = {place: tied(found) for place, found in numbers.items()}
    marks = {
        f"tied_{name}": [
            m in close.get((T, _metric(name)), ()) for m, T in zip(table["model"], table["T"], strict=True)
        ]
        for name in (*COLUMNS.values(), "HM")
        if name in table
    }
    at = list(table).index("perplexity")
    return pd.concat([table.iloc[:, :at], pd.DataFrame(marks), table.iloc[:, at:]], axis=1)


def _metric(column: str) -> str:
    """A column's name among the metrics of no paper."""
    return column.lower().replace(" ", "_")


def _caption(cells: Sequence[Cell], lines: pd.DataFrame, score: Score, merge: Merge) -> str:
    meta, rome = cells[0].meta, any(kind in lines for kind in SCORE)
    parts = [
        place(cells),
        f"{metrics()[score].caption} x100, {merge}, N cases{_of_seeds(cells)}",
        *([SUCCESS] if score == "token" and rome else []),
        *(said for name, said in meanings().items() if name in lines),
        *([BRACKETS] if rome else []),
        "seconds = editing up to T",
    ]
    parts += strictly_scored(cells) if metrics()[score].scoring == "strict" else []
    parts += _other_counts(lines) + _not_counted(cells) + _alarms(cells, lines)
    parts += [f"dropped: {n} {what}" for what, n in meta["data"]["dropped"].items()] + list(meta["data"]["notes"])
    if meta["order_seed"] is not None:
        parts.append(f"order seed {meta['order_seed']}")
    if meta["overrides"]:
        parts.append(f"options: {meta['overrides']}")
    return "; ".join(parts)


def _of_seeds(cells: Sequence[Cell]) -> str:
    seeds = sorted({cell.meta["seed"] for cell in cells})
    return f" in each of the edit seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else ""


def place(cells: Sequence[Cell]) -> str:
    """Where the cells of one table ran."""
    meta, horizons = cells[0].meta, sorted({cell.meta["effective_T"] for cell in cells})
    return f"{meta['model']} on {meta['dataset']}, {meta['setting']}, effective T={'/'.join(map(str, horizons))}"


def _other_counts(lines: pd.DataFrame) -> list[str]:
    """Kinds that not every case has."""
    asked = [kind for kind in COLUMNS if f"n_{kind}" in lines]
    partial = [kind for kind in asked if lines[f"n_{kind}"].max() and (lines[f"n_{kind}"] != lines["N"]).any()]
    return [f"{COLUMNS[kind]} has N={'/'.join(str(n) for n in lines[f'n_{kind}'].unique())}" for kind in partial]


def _not_counted(cells: Sequence[Cell]) -> list[str]:
    """Questions whose conditions the unedited model does not fulfil, and cases whose edit failed (RippleEdits)."""
    said = [*map(_failed_edits, cells)] if any("edit_failed" in cell.rows for cell in cells) else []
    for cell in cells[:1]:  # the same for every editor
        before = cell.rows[cell.rows["when"] == "before"].drop_duplicates(["case", "kind", "group", "probe"])
        if "skipped" not in before:
            continue
        for kind, rows in before.groupby("kind", sort=False):
            lost = int(rows["skipped"].notna().sum())
            if lost:
                counted = f"{lost} of {len(rows)} questions do not count"
                said.append(f"{COLUMNS[str(kind)]}: {counted}, their conditions fail before the edit")
    return said


def _failed_edits(cell: Cell) -> str:
    """Cases that do not count because the edited model does not say the new fact."""
    tested = cell.rows[cell.rows["when"] == "test"]
    failed = tested[tested["edit_failed"].notna()]["case"] if "edit_failed" in tested else tested["case"][:0]
    editor = f"{cell.meta['editor']} (seed {cell.meta['seed']})"
    return (
        f"{failed.nunique()} of {tested['case'].nunique()} edits of {editor} failed: what else changed does not count"
    )


def _alarms(cells: Sequence[Cell], lines: pd.DataFrame) -> list[str]:
    """What a reader must know before believing a number."""
    worst = lines.groupby("model")["perplexity"].max()
    collapsed = worst.index[worst > 2 * worst.get(UNEDITED_ROW, math.nan)]
    said = [f"perplexity of a held-out text more than doubled under {model}" for model in collapsed]
    for cell in cells:
        failed = int(cell.steps["failed"].sum()) if "failed" in cell.steps else 0
        if failed:
            said.append(f"{failed} edits of {cell.meta['editor']} (seed {cell.meta['seed']}) failed and were undone")
    return said + closings(cells) + numbers(cells) + encoders(cells) + noise(cells)


# --- showing ---------------------------------------------------------------------------------------------------------


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers as printed: one decimal, a dash where there is none, half-widths behind, no columns that say nothing."""
    hidden = {"perplexity", *(f"{part}_{kind}" for part in ("n", "ci") for kind in COLUMNS)}
    hidden |= {name for name in table if name.startswith("tied_")}
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


def grid(caption: str, table: pd.DataFrame) -> Grid:
    """The printed form: each line's editor, then its numbers; the best editor's of each T is bold."""
    text = shown(table)
    names = [name for name in text if name != "model"]
    marks = {name: _marks(table, name) for name in names}
    lines = []
    for i, record in enumerate(text.to_dict("records")):
        entries = [
            TableCell(record[name], bold=marks[name][i] == BEST, mark=MARK * (marks[name][i] == TIED)) for name in names
        ]
        lines.append(Line((both_names(record["model"]),), tuple(entries)))
    said = [BOLD, SIGNIFICANCE] if any(MARK in entry.mark for line in lines for entry in line.entries) else []
    said = said or ([BOLD] if any(entry.bold for line in lines for entry in line.entries) else [])
    return Grid("", ("editor",), tuple((name,) for name in names), tuple(lines), "; ".join([caption, *said]) + ".")


def stubbed(caption: str, table: pd.DataFrame, stubs: Sequence[str]) -> Grid:
    """A table whose lines are told apart by these columns, in its printed form."""
    text = shown(table)
    columns = [name for name in text if name not in stubs]
    heads, entries = text[[*stubs]].to_numpy().tolist(), text[columns].to_numpy().tolist()
    lines = [Line(tuple(head), tuple(map(TableCell, line))) for head, line in zip(heads, entries, strict=True)]
    return Grid("", tuple(stubs), tuple((name,) for name in columns), tuple(lines), f"{caption}.")


def _marks(table: pd.DataFrame, name: str) -> list[str]:
    """For each line, is its number the best of its T, or tied with it? By the digits shown; of several editors."""
    if name not in (*COLUMNS.values(), "HM", "Score"):
        return [""] * len(table)
    ties = table[f"tied_{name}"] if f"tied_{name}" in table else [False] * len(table)
    edited = table["model"] != UNEDITED_ROW
    values = table[name].round(1)
    best = values.where(edited).groupby(table["T"]).transform("max")
    rivals = edited.groupby(table["T"]).transform("sum") > 1
    top = edited & rivals & (values == best)
    return [BEST if is_top else TIED if is_tied else "" for is_top, is_tied in zip(top, ties, strict=True)]


def markdown(caption: str, table: pd.DataFrame) -> str:
    return formats.markdown(grid(caption, table))


def write(cells: Sequence[Cell], directory: Path) -> list[tuple[str, pd.DataFrame]]:
    """table.md and table.csv in `directory`; returns what was written."""
    made = list(tables(cells))
    write_as("table", made, grid, directory)
    return made


def write_as(
    name: str,
    made: Sequence[tuple[str, pd.DataFrame]],
    form: Callable[[str, pd.DataFrame], Grid],
    directory: Path,
) -> None:
    """NAME.md, in the form that `form` gives each (caption, table), and NAME.csv; nothing if there is no table."""
    if made:
        text = "\n".join(formats.markdown(form(*one)) for one in made)
        (directory / f"{name}.md").write_text(text, encoding="utf-8")
        as_csv(made).to_csv(directory / f"{name}.csv", index=False)


def as_csv(made: Sequence[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    return pd.concat([table.assign(caption=caption) for caption, table in made])


def show(made: Sequence[tuple[str, pd.DataFrame]]) -> None:
    """Print tables on the terminal."""
    formats.show([grid(caption, table) for caption, table in made])
