"""What a page shows of a cell: its config, what made its numbers, its files, and the command that runs it."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kedit.common.dotted import dotted
from kedit.common.text_files import read_text
from kedit.reports.table.formats import Grid, Line, TableCell
from kedit.results.cell_files import CONFIG, requested_cells
from kedit.results.cells import Cell
from kedit.results.names import both_names

FILES = ("rows.jsonl", "steps.jsonl", "config.yaml", "meta.json", "table.csv", "table.md", "run.log", "error")
FACTS = ("model", "dataset", "editor", "setting", "T", "effective_T", "seed", "overrides", "order_seed", "cases")
LONG = ("kinds", "files", "numbers", "untuned")  # parts of meta.json: in the config too, or lists


def described(cells: Sequence[Cell], home: Path) -> list[dict[str, Any]]:
    """One a cell, in the order of their directories."""
    commands = {cell["directory"]: cell.get("overrides", ()) for cell in requested_cells(home)}
    return [_cell(cell, home, commands) for cell in cells]


def _cell(cell: Cell, home: Path, commands: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    directory = place(cell, home)
    overrides = commands.get(directory)
    return {
        "directory": directory,
        "title": title(cell),
        "editor": cell.meta["editor"],
        "facts": [["directory", directory], *facts(cell.meta)],
        "files": [name for name in FILES if (cell.directory / name).exists()],
        "command": shlex.join(["kedit", *overrides]) if overrides else "",
        "config": read_text(cell.directory / CONFIG) or "",
    }


def place(cell: Cell, home: Path) -> str:
    return Path(os.path.relpath(cell.directory.resolve(), home.resolve())).as_posix()


def title(cell: Cell) -> str:
    said = "{model}, {dataset}, {setting} T={T}, seed {seed}".format(**cell.meta)
    options = f", {cell.meta['overrides']}" if cell.meta["overrides"] else ""
    return f"{both_names(cell.meta['editor'])} on {said}{options}"


def facts(meta: Mapping[str, Any]) -> list[list[str]]:
    """The fields of meta.json: choices first, then provenance and costs by their dotted names."""
    known = {name: value for name, value in dotted(dict(meta)) if name.partition(".")[0] not in LONG}
    names = [*FACTS, *(name for name in known if name not in FACTS)]
    return [[name, _text(known[name])] for name in names if name in known and known[name] not in (None, "", [])]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def grid(cells: Sequence[Cell], home: Path) -> Grid:
    """Every cell, with what it is and what it cost."""
    columns = ("setting", "T", "seed", "options", "state", "cases", "edit s", "test s", "MB", "commit")
    lines = tuple(Line(_head(cell), _entries(cell, home)) for cell in cells)
    said = (
        "One line a cell; each links to its config and to what made its numbers. s: seconds of editing and of testing."
    )
    return Grid(
        "Cells", ("editor", "model", "dataset"), tuple((name,) for name in columns), lines, said, prose=("options",)
    )


def _head(cell: Cell) -> tuple[str, ...]:
    return (both_names(cell.meta["editor"]), str(cell.meta["model"]), str(cell.meta["dataset"]))


def _entries(cell: Cell, home: Path) -> tuple[TableCell, ...]:
    meta, seconds = cell.meta, cell.meta.get("seconds", {})
    texts = [
        meta["setting"],
        meta["T"],
        meta["seed"],
        meta["overrides"] or "-",
        "done" if cell.finished else "not finished",
    ]
    texts += [meta.get("cases", "-")]
    texts += [f"{seconds[part]:.1f}" if part in seconds else "-" for part in ("edit", "evaluate")]
    texts += [f"{meta['peak_memory_mb']:.0f}" if meta.get("peak_memory_mb") else "-", str(meta.get("git") or "-")[:8]]
    link = f"{place(cell, home)}/"
    return tuple(TableCell(str(text), link=link if i == 4 else "") for i, text in enumerate(texts))
