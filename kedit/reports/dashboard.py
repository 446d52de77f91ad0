"""What a cell shows on a dashboard: its config in one flat table, its scores by the names of tables, its rows."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from kedit.common.dotted import dotted
from kedit.loop.tracker import Report
from kedit.results.cell_files import META
from kedit.results.cells import Cell
from kedit.results.columns import COLUMNS
from kedit.results.routing import ALL, routing
from kedit.results.scores import UNEDITED_ROW, summary

ROUTING = {  # name -> column of what was recalled
    "recall": "recall@k",
    "recall_at_1": "recall@1",
    "filter_recall": "filter recall",
    "filter_precision": "filter precision",
    "in_context": "in context",
}
LEFT_OUT = ("machine", "files", "kinds")  # parts of meta.json: on disk, and of no use for choosing runs


def flat_config(config: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Options by the names that the command line has for them ("editor.lr"; a part's class under the part's own name,
    "editor.loss"), with the cell's choices ("editor", "T", ...) and where it comes from ("git", "data.sha256")."""
    known = {key: value for key, value in meta.items() if key not in LEFT_OUT}
    return dict(flat(config)) | dict(flat(known))


def flat(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything below `node`."""
    for name, value in dotted(node):
        place, _, key = name.rpartition(".")
        if key == "_target_":
            yield place, str(value).rpartition(".")[2]
        elif key != "_partial_":
            yield name, value


def metric(column: str) -> str:
    """A table's column as wandb can sort by it: letters, digits and underscores only."""
    return column.lower().replace(" ", "_")


def scores_of(cell: Cell) -> dict[str, float]:
    """The table's numbers: of the largest T by their names (edit_success, locality, hm, ...), of each T as
    <name>_T<T>, of the unedited model as <name>_unedited."""
    lines = summary(cell.rows, kinds=cell.kinds)
    found: dict[str, float] = {}
    for line in lines.to_dict("records"):
        numbers = {metric(name): line[name] for name in (*COLUMNS.values(), "HM", "Score") if name in line}
        numbers = {name: v for name, v in (numbers | {"n_cases": line["N"]}).items() if not math.isnan(v)}
        end = "_unedited" if line["model"] == UNEDITED_ROW else f"_T{line['T']}"
        found |= {key + end: value for key, value in numbers.items()}
        if line["T"] == lines["T"].max():
            found |= numbers
    return found


def routing_of(cell: Cell) -> dict[str, float]:
    """What was recalled at the largest T, of all kinds (routing_recall, routing_filter_precision, ...), and how much
    of each kind was routed (routing_rate_locality, ...); empty for an editor without a memory."""
    lines = routing(cell)
    found: dict[str, float] = {}
    for line in lines[lines["T"] == lines["T"].max()].to_dict("records"):
        if line["kind"] == ALL:
            found |= {f"routing_{name}": line[column] for name, column in ROUTING.items()}
        elif not line["group"]:
            found[f"routing_rate_{line['kind']}"] = line["in scope"]
    return {name: value for name, value in found.items() if not math.isnan(value)}


def sweep_report(cells: Sequence[Cell], tables: Sequence[tuple[str, pd.DataFrame]], directory: Path) -> Report:
    """A sweep's page: the tables of all cells under each other, the pictures."""
    table = pd.concat([table.assign(caption=caption) for caption, table in tables])
    return Report({"n_cells": len(cells)}, {"table": table}, pictures_in(directory))


def is_new(directory: Path, cells: Sequence[Cell]) -> bool:
    """Has a cell been finished since the sweep in `directory` was last shown?"""
    shown = max((path.stat().st_mtime for path in directory.glob("wandb/*/*.wandb")), default=0.0)
    return max((cell.directory / META).stat().st_mtime for cell in cells) > shown


def report(cell: Cell, table: pd.DataFrame) -> Report:
    """A finished cell's scores and costs, table, rows and pictures."""
    costs = {name: cell.meta[name] for name in ("optimiser_steps", "edits_per_s", "probes_per_s", "peak_memory_mb")}
    costs |= {f"seconds_{part}": value for part, value in cell.meta["seconds"].items()}
    costs |= {"failed_edits": int(cell.steps["failed"].sum()) if "failed" in cell.steps else 0}
    known = {name: value for name, value in costs.items() if value is not None}
    tables = {"table": table, "rows": plain(cell.rows), **training_curve(cell)}
    return Report(scores_of(cell) | routing_of(cell) | known, tables, pictures_in(cell.directory))


def training_curve(cell: Cell) -> dict[str, pd.DataFrame]:
    """The validations of the editor's training, a line each; nothing for an editor that is not trained so."""
    learnt = cell.steps["learnt"].iloc[0] if "learnt" in cell.steps else None
    curve = learnt.get("curve") if isinstance(learnt, dict) else None
    return {"training_curve": pd.DataFrame(curve)} if curve else {}


def pictures_in(directory: Path) -> dict[str, Path]:
    """By their names."""
    return {path.stem: path for path in sorted(directory.glob("*.png"))}


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """A column holds numbers, or texts: lists and objects as JSON, what is unknown as None."""
    return pd.DataFrame(
        {name: column if is_numeric_dtype(column) else _plain(column) for name, column in frame.items()}
    )


def _plain(column: pd.Series) -> pd.Series:
    texts = [_text(value) for value in column]
    return pd.Series(texts, index=column.index, dtype=object)


def _text(value: Any) -> str | None:
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return None if value is None or value != value else str(value)
