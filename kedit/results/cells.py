"""What has run, read back: a cell is one run's directory."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from kedit.cases import KNOWEDIT
from kedit.common.errors import InputError
from kedit.common.paths import runs, sweep_folder
from kedit.results.cell_files import CONFIG, META, ROWS, STEPS, TRACES, is_finished
from kedit.results.schema import check, upgraded

# cells that differ in one of these stand in no table and in no picture together
SAME = ("model", "dataset", "setting", "order_seed", "overrides", "versions")


@dataclass(frozen=True)
class Cell:
    """One run's directory, finished or not."""

    directory: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.directory / META).read_text())

    @property
    def finished(self) -> bool:
        return is_finished(self.directory)

    @cached_property
    def config(self) -> dict[str, Any]:
        """As it was resolved; empty where the cell has none."""
        path = self.directory / CONFIG
        return yaml.safe_load(path.read_text()) if path.exists() else {}

    @property
    def kinds(self) -> list[str]:
        """What its tests were to ask; runs made before there was a choice asked KnowEdit's kinds."""
        return self.meta.get("kinds", list(KNOWEDIT))

    @property
    def schema(self) -> int:
        """Of its rows. Raises InputError if a newer kedit wrote them."""
        check(schema := int(self.meta.get("schema", 1)), str(self.directory))
        return schema

    @cached_property
    def rows(self) -> pd.DataFrame:
        rows = _read(self.directory / ROWS, dtype={"case": str, "gold": str, "pred": str})
        return upgraded(rows, self.schema)

    @cached_property
    def steps(self) -> pd.DataFrame:
        return upgraded(_read(self.directory / STEPS), self.schema)

    def steps_to(self, T: int) -> pd.DataFrame:
        """Those up to the last test of this T."""
        last = self.rows[(self.rows["when"] == "test") & (self.rows["T"] == T)]["step"].max()
        return self.steps[self.steps["step"] <= last]

    @cached_property
    def traces(self) -> pd.DataFrame:
        """What was heard over the optimiser steps of its edits; empty where nobody listened."""
        path = self.directory / TRACES
        return _read(path, dtype={"case": str}) if path.exists() else pd.DataFrame()


def _read(path: Path, **kwargs: Any) -> pd.DataFrame:
    return pd.read_json(path, lines=True, precise_float=True, **kwargs)


def find(place: str | Path) -> list[Cell]:
    """The cells of a sweep (a name under the runs folder) or below a directory."""
    root = sweep_folder(place)
    cells = [Cell(path.parent) for path in sorted(root.rglob(META)) if (path.parent / ROWS).exists()]
    if not cells:
        raise InputError(f"{root}: no run there; give a sweep that has run, or a directory below {runs()}/")
    return cells
