"""In which options cells differ: what a table of them side by side must say of each line."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kedit.common.dotted import dotted
from kedit.reports.dashboard import flat
from kedit.results.cells import Cell

CHOICES = ("model", "dataset", "editor", "setting", "T")
PROVENANCE = ("data.sha256", "model_is.identity", "model_is.dtype", "versions", "kedit", "git")
ABSENT = "-"
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """Cells that differ in the seed alone: one line of a table."""

    sweep: str
    options: Options
    cells: Sequence[Cell]

    def __getitem__(self, name: str) -> str:
        """An option's value as text."""
        value = self.sweep if name == "sweep" else self.options.get(name, ABSENT)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def rows_of(cells: Iterable[Cell]) -> list[Row]:
    """One for all seeds of the same options; a second cell of one seed is a line of its own."""
    groups: dict[tuple[str, str, int], list[Cell]] = {}
    seeds: dict[tuple[str, str], list[int]] = {}
    for cell in cells:
        key = (sweep_of(cell), json.dumps(options_of(cell), sort_keys=True, default=str))
        copies = seeds.setdefault(key, [])
        groups.setdefault((*key, copies.count(cell.meta["seed"])), []).append(cell)
        copies.append(cell.meta["seed"])
    return [Row(sweep, options_of(found[0]), found) for (sweep, *_), found in groups.items()]


def options_of(cell: Cell) -> dict[str, Any]:
    """A cell's choices and options by the names that the command line has for them, without what follows its seed."""
    seed = cell.meta["seed"]
    options = dict(flat(cell.config))
    kept = {name: value for name, value in options.items() if not (name.split(".")[-1] == "seed" and value == seed)}
    return kept | {name: cell.meta[name] for name in CHOICES}


def sweep_of(cell: Cell) -> str:
    """The sweep's folder, above model/dataset/editor/setting-T/seed."""
    parts = cell.directory.resolve().parts
    seed = next((i for i in range(len(parts) - 1, -1, -1) if parts[i] == f"seed{cell.meta['seed']}"), 0)
    return parts[seed - 5] if seed >= 5 else ""


def differing(rows: Sequence[Row]) -> list[str]:
    """Options in which the rows differ: choices first, then what was given on a command line, then whatever else
    differs between rows of the same choices (what follows from a choice is not said again)."""
    shown = [name for name in ("sweep", *CHOICES) if _differs(name, rows)]
    given = dict.fromkeys(name for row in rows for cell in row.cells for name in overridden(cell.meta["overrides"]))
    shown += [name for name in given if name not in shown and _differs(name, rows)]
    others = dict.fromkeys(name for row in rows for name in row.options)
    for name in sorted(others, key=lambda name: (name.count("."), list(others).index(name))):
        if name not in shown and not _follows(
            name, [c for c in shown if c in CHOICES or name.startswith(f"{c}.")], rows
        ):
            shown.append(name)
    return shown


def overridden(overrides: str) -> list[str]:
    """The options that a cell's overrides name: editor.loss for editor/loss=overtone."""
    keys = re.findall(r"(?:^|,)[+~]*([\w./@-]+)=", overrides)
    return [key.partition("@")[0].replace("/", ".") for key in keys]


def _differs(name: str, rows: Sequence[Row]) -> bool:
    return len({row[name] for row in rows}) > 1


def _follows(name: str, choices: Sequence[str], rows: Sequence[Row]) -> bool:
    """Is an option's value told by these choices' alone?"""
    values: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        values.setdefault(tuple(row[choice] for choice in choices), set()).add(row[name])
    return all(len(found) == 1 for found in values.values())


def provenance(rows: Sequence[Row]) -> list[str]:
    """What made the rows' numbers differs in this, too: code, libraries, data, weights."""
    known = [dict(dotted(cell.meta)) for row in rows for cell in row.cells]
    names = dict.fromkeys(name for meta in known for name in meta)
    said = []
    for name in names:
        same_kind = name in PROVENANCE or name.partition(".")[0] in PROVENANCE
        if same_kind and len({str(meta.get(name)) for meta in known}) > 1:
            choice = {"data.sha256": "dataset", "model_is.identity": "model", "model_is.dtype": "model"}.get(name)
            if choice is None or not _follows_meta(name, choice, known):
                said.append(name)
    return said


def _follows_meta(name: str, choice: str, known: Sequence[Mapping[str, Any]]) -> bool:
    """Is it told by the choice (and by the seed, which draws the world's edits)?"""
    values = {(meta[choice], meta["seed"], str(meta.get(name))) for meta in known}
    return len(values) == len({value[:2] for value in values})
