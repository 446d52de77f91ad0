"""What has run, read back: a cell is one run's directory."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.json as pj
import yaml

from kedit.cases import BENCHMARK, KNOWEDIT
from kedit.common.errors import InputError
from kedit.common.paths import runs, sweep_folder
from kedit.results.cell_files import BENCHMARKS, CONFIG, META, ROWS, STEPS, TRACES, cell_directories, is_finished
from kedit.results.integrity import DamagedFile, check_files, complete_lines, read_json
from kedit.results.schema import check, upgraded

log = logging.getLogger(__name__)

# cells that differ in one of these stand in no table and in no picture together
SAME = ("model", "dataset", "setting", "order_seed", "overrides", "versions")
NAMES = ("model", "dataset", "editor", "setting", "T", "seed", "effective_T")  # that every cell's meta.json has
OF_MEASURES = ("metric", "value", "stderr", "n", "filter", "main", "routed")  # columns of rows of the whole model
COLUMNS = ("step", "when", "case", "kind", "group", "probe", "scoring", "T")  # always in a frame of rows


@dataclass(frozen=True)
class Cell:
    """One run's directory, finished or not."""

    directory: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        return read_json(self.directory, META)

    @property
    def finished(self) -> bool:
        return is_finished(self.directory)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config; empty if the cell has none."""
        path = self.directory / CONFIG
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise DamagedFile(self.directory, CONFIG, "it is no YAML") from error
        if not isinstance(content, dict):
            raise DamagedFile(self.directory, CONFIG, "it holds no options")
        return content

    @property
    def kinds(self) -> list[str]:
        """What its tests were to ask; runs made before there was a choice asked KnowEdit's kinds."""
        return self.meta.get("kinds", list(KNOWEDIT))

    @property
    def schema(self) -> int:
        """The schema of its rows. Raises InputError if a newer kedit wrote them."""
        check(schema := int(self.meta.get("schema", 1)), str(self.directory))
        return schema

    @cached_property
    def _all_rows(self) -> pd.DataFrame:
        rows = self._read(ROWS, dtype={"case": str, "gold": str, "pred": str})
        if len(rows) and not {"when", "kind", "case"} <= set(rows):
            raise DamagedFile(self.directory, ROWS, "it holds no rows")
        absent = [name for name in COLUMNS if name not in rows]
        return upgraded(rows.reindex(columns=[*rows, *absent]) if absent else rows, self.schema)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The kinds of its probes."""
        rows = self._all_rows
        return rows[rows["kind"] != BENCHMARK].drop(columns=[name for name in OF_MEASURES if name in rows])

    @cached_property
    def measures(self) -> pd.DataFrame:
        """Its rows of measures of the whole model; empty if it has none."""
        rows = self._all_rows
        return rows[rows["kind"] == BENCHMARK].dropna(axis="columns", how="all")

    @cached_property
    def steps(self) -> pd.DataFrame:
        return upgraded(self._read(STEPS), self.schema)

    @property
    def tested(self) -> bool:
        """Whether a test of it is through."""
        return bool((self.rows["when"] == "test").any())

    def steps_to(self, T: int) -> pd.DataFrame:
        """Those up to the last test of this T."""
        last = self.rows[(self.rows["when"] == "test") & (self.rows["T"] == T)]["step"].max()
        return self.steps[self.steps["step"] <= last]

    @cached_property
    def traces(self) -> pd.DataFrame:
        """What was recorded at the optimiser steps of its edits; empty if nothing was, or if it is damaged."""
        try:
            check_files(self.directory, only=[TRACES])
            there = (self.directory / TRACES).exists()
            return self._read(TRACES, dtype={"case": str}) if there else pd.DataFrame()
        except DamagedFile as damaged:
            log.warning("left out: %s", damaged)
            return pd.DataFrame()

    def _read(self, name: str, **kwargs: Any) -> pd.DataFrame:
        """A file of records, also while it grows: an unfinished last line is left out."""
        try:
            return _frame(complete_lines(self.directory / name), **kwargs)
        except FileNotFoundError as error:
            raise DamagedFile(self.directory, name, "it is missing") from error
        except ValueError as error:
            raise DamagedFile(self.directory, name, f"it cannot be read: {error}") from error

    def check(self) -> None:
        """Read all that tables are made of. Raises InputError if something is damaged, or written by a newer kedit."""
        check_files(self.directory, without=[TRACES, BENCHMARKS])
        absent = [name for name in NAMES if name not in self.meta]
        if absent:
            raise DamagedFile(self.directory, META, f"it has no {', '.join(absent)}")
        _ = self.config
        if len(self.rows) and "step" not in self.steps:
            raise DamagedFile(self.directory, STEPS, "it holds no steps")
        if self.finished and not self.tested:
            raise DamagedFile(self.directory, ROWS, "it holds no test, and the run has finished")


def _frame(lines: bytes, **kwargs: Any) -> pd.DataFrame:
    """Records of JSON. Arrow reads them four times faster; what it does not hold as pandas does (records in records, a
    column of several types) pandas reads."""
    if not lines:
        return pd.DataFrame()
    try:
        whole = pj.ReadOptions(use_threads=False, block_size=len(lines) + 1)
        table = pj.read_json(BytesIO(lines), read_options=whole)
        if not any(pa.types.is_nested(column.type) or pa.types.is_timestamp(column.type) for column in table.columns):
            return table.to_pandas()
    except pa.ArrowInvalid:
        pass
    return pd.read_json(StringIO(lines.decode("utf-8")), lines=True, precise_float=True, **kwargs)


def find(place: str | Path) -> list[Cell]:
    """The cells of a sweep (a name under the runs folder) or below a directory; those that cannot be read are left out,
    with a warning each."""
    root = sweep_folder(place)
    there = cell_directories(root, META, ROWS)
    cells = readable(there)
    if not cells and any((cell / ROWS).exists() for cell in there):
        raise InputError(f"{root}: no run there can be read; run one of them again")
    if not cells:
        raise InputError(f"{root}: no run there; give a sweep that has run, or a directory below {runs()}/")
    return cells


def readable(directories: Iterable[Path]) -> list[Cell]:
    """The cells of these directories that have rows; a damaged one is left out, with a warning."""
    cells = []
    for cell in map(Cell, directories):
        if not (cell.directory / ROWS).exists() and not cell.finished:
            continue  # it is about to begin
        try:
            cell.check()
            cells.append(cell)
        except InputError as error:
            log.warning("left out: %s", error)
    return cells


def tested(cells: Sequence[Cell]) -> list[Cell]:
    """Those with a test to show; how many have none is said. Raises InputError if none has."""
    through = [cell for cell in cells if cell.tested]
    if not through:
        raise InputError("nothing was tested yet in these runs; python -m kedit.status shows how far they are")
    if len(through) < len(cells):
        first = next(cell.directory for cell in cells if not cell.tested)
        log.warning("%d of %d cells have no test yet, e.g. %s", len(cells) - len(through), len(cells), first)
    return through
