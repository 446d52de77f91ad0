"""How a sweep's table is laid out: what its yaml says under `table`, and the order in which the paper prints."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from kedit.common.axes import axis_values
from kedit.common.errors import InputError, named_in
from kedit.common.paths import ROOT, runs
from kedit.papers import KEYS, PAPERS, as_text, printed
from kedit.results.cell_files import is_finished, requested_cells
from kedit.results.names import display_name
from kedit.results.scores import profiles

SPLIT = (
    "setting",
    "T",
    "model",
    "dataset",
    "editor",
)  # keys that make tables of their own where the layout has no place
PLAIN_DEPTH = 5  # parts of a cell's directory without further overrides
PLACE = ["model", "setting", "T", "dataset"]  # a paper's number and ours are of the same where these are equal


@dataclass(frozen=True)
class Layout:
    """One printed table, and the sweep that fills it."""

    sweep: str
    paper: str
    number: int
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    same_as: Mapping[str, str] = field(default_factory=dict)
    axes: Mapping[str, Sequence[str]] = field(default_factory=dict)  # what the sweep runs
    more: str = ""  # what every command that fills it needs besides
    benchmarks: Mapping[str, str] = field(default_factory=dict)  # for such a table: benchmark -> the paper's name
    edited: Mapping[tuple[Any, ...], str] = field(
        default_factory=dict
    )  # for such a table: PLACE -> dataset of the edits
    scored_as: str = ""  # the reading of the metrics (kedit.results.scores.profiles); "": the paper's text
    notes: tuple[str, ...] = ()  # where the paper's runs differ from what the sweep runs, for captions

    @property
    def name(self) -> str:
        return f"{PAPERS[self.paper]}, Table {self.number}"

    @property
    def profile(self) -> str:
        """The reading of the paper's metrics."""
        return self.scored_as or self.paper

    @cached_property
    def missing(self) -> Mapping[tuple[str, str, str], Sequence[str]] | None:
        """What the sweep's cells lacked when they were last run or checked: (model, dataset, editor) -> what, for
        those that are not finished; None if the sweep was never run."""
        home = runs() / self.sweep
        plain = [cell for cell in requested_cells(home) if len(Path(cell["directory"]).parts) == PLAIN_DEPTH]
        if not plain:
            return None
        found: dict[tuple[str, str, str], list[str]] = {}
        for cell in plain:
            names = [named_in(sentence) for sentence in cell.get("missing", ())]
            if names and not is_finished(home / cell["directory"]):
                found.setdefault((cell["model"], cell["dataset"], cell["editor"]), []).extend(names)
        return found

    @cached_property
    def printed(self) -> pd.DataFrame:
        """The paper's numbers, with their printed form as `text` and `ci_text`; `dash` where it prints a dash."""
        texts = as_text(self.paper, self.number)
        dash = (texts["value"] == "") & texts["note"].str.startswith("printed")
        return printed(self.paper, self.number).assign(text=texts["value"], ci_text=texts["ci"], dash=dash)

    @property
    def unit(self) -> str:
        """What N counts."""
        return "questions" if self.benchmarks else "cases"

    @cached_property
    def decimals(self) -> dict[str, int]:
        """Decimals of each metric, as the paper prints it."""
        digits = self.printed["text"].str.partition(".")[2].str.len()
        return digits.groupby(self.printed["metric"]).max().to_dict()


def layout(sweep: str, folder: Path = ROOT / "sweeps") -> Layout | None:
    """The layout of a sweep; None where it defines no table."""
    path = folder / f"{sweep}.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    if not config or "rows" not in (config.get("table") or {}):
        return None
    table = config["table"]
    rows, columns = tuple(table["rows"]), tuple(table["columns"])
    wrong = [key for key in (*rows, *columns) if key not in KEYS]
    if wrong or len({*rows, *columns}) < len(rows) + len(columns):
        raise InputError(f"{path}: table.rows and table.columns take each of {', '.join(KEYS)} at most once")
    params = config.get("hydra", {}).get("sweeper", {}).get("params", {})
    axes = {
        key: axis_values(params.get(key, config.get(key, ""))) for key in ("model", "dataset", "editor", "setting", "T")
    }
    same_as, notes = dict(table.get("same_as") or {}), tuple(table.get("notes") or ())
    scored_as = str(table.get("scored_as") or "")
    known = Layout(
        sweep, table["paper"], int(table["number"]), rows, columns, same_as, axes, scored_as=scored_as, notes=notes
    )
    if known.profile not in profiles(known.paper):
        raise InputError(f"{path}: table.scored_as={known.scored_as}; choose {', '.join(profiles(known.paper))}")
    benchmarks = dict(table.get("benchmarks") or {})
    return replace(known, benchmarks=benchmarks, edited=edited_at(known.printed)) if benchmarks else known


def layouts(folder: Path = ROOT / "sweeps") -> Iterator[Layout]:
    """Every sweep that defines a table."""
    for path in sorted(folder.glob("*.yaml")):
        found = layout(path.stem, folder)
        if found:
            yield found


# --- order -----------------------------------------------------------------------------------------------------------

Position = tuple[Any, ...]


@dataclass(frozen=True)
class Block:
    """One grid's places, in order, and what is there: (row, column) -> record."""

    title: str
    rows: list[Position]
    columns: list[Position]
    records: dict[tuple[Position, Position], dict[str, Any]]


def blocks(frame: pd.DataFrame, layout: Layout) -> list[Block]:
    """The frame's numbers in the layout's places, in order of first appearance; a key without a place splits it."""
    place = [*layout.rows, *layout.columns]
    for key in SPLIT:
        if frame.duplicated(place).any() and key not in place and frame[key].nunique(dropna=False) > 1:
            parts = [(value, part) for value, part in frame.groupby(key, sort=False, dropna=False)]
            return [
                Block(
                    ", ".join(filter(None, [named(key, value), block.title])), block.rows, block.columns, block.records
                )
                for value, part in parts
                for block in blocks(part, layout)
            ]
    if frame.duplicated(place).any():
        raise InputError(f"{layout.sweep}: table.rows and table.columns leave several numbers in one place")
    records = {}
    for record in frame.to_dict("records"):
        records[_at(record, layout.rows), _at(record, layout.columns)] = record
    return [Block("", in_order([row for row, _ in records]), in_order([col for _, col in records]), records)]


def _at(record: Mapping[str, Any], keys: Sequence[str]) -> Position:
    return tuple(None if pd.isna(record[key]) else record[key] for key in keys)


def in_order(places: Sequence[Position]) -> list[Position]:
    """Each once: by first appearance of the outermost value, then of the next one within it."""
    rank: dict[Position, int] = {}
    for place in places:
        for i in range(len(place)):
            rank.setdefault(place[: i + 1], len(rank))
    return sorted(set(places), key=lambda place: [rank[place[: i + 1]] for i in range(len(place))])


def as_printed(frame: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """Lines in the paper's order of each key; what the paper does not have comes last, as it stands."""
    order = {key: list(dict.fromkeys(layout.printed[key])) for key in KEYS}

    def rank(column: pd.Series) -> pd.Series:
        if column.name == "T":
            return column.fillna(0)
        known = order[str(column.name)]
        return column.map(lambda value: known.index(value) if value in known else len(known))

    return frame.sort_values(list(KEYS), key=rank, kind="stable") if len(frame) else frame


def belongs(frame: pd.DataFrame, layout: Layout) -> pd.Series:
    """Which lines have a counterpart in the paper: same model, setting, T and dataset."""
    known = set(map(place_of, layout.printed[PLACE].to_dict("records")))
    return pd.Series([place_of(record) in known for record in frame[PLACE].to_dict("records")], frame.index, dtype=bool)


def place_of(record: Mapping[str, Any]) -> Position:
    return _at(record, PLACE)


def edited_at(frame: pd.DataFrame) -> dict[Position, str]:
    """Which dataset the edits of a benchmark's number are of, as its note says."""
    records = [(record, re.search(r"edit_dataset=(\w+)", record["note"])) for record in frame.to_dict("records")]
    return {place_of(record): found[1] for record, found in records if found}


# --- words -----------------------------------------------------------------------------------------------------------

_WORDS = {
    "average": "Average",
    "none": "(unedited)",
    "hellaswag": "HellaSwag",
    "winogrande": "Winogrande",
    "mmlu": "MMLU",
    "csqa": "CSQA",
    "mnli": "MNLI",
    "sst2": "SST-2",
}
_KNOWEDIT = {"edit_success": "ES", "locality": "L", "portability": "P", "hm": "HM", "fluency": "Fluency"}
METRICS: dict[str, Mapping[str, str]] = {
    "kdpo": {"edit_success": "Edit Succ."},
    "kedas": {
        **_KNOWEDIT,
        "editing_hours": "Editing (h)",
        "inference_hours": "Inference (h)",
        "memory_gb": "Memory (GB)",
    },
    "overtone": {
        "edit_success": "Rel.",
        "generality": "Gen.",
        "portability": "Por.",
        "locality": "Loc.",
        "avg": "Avg.",
        "one_hop": "1-Hop",
        "two_hop": "2-Hop",
    },
}


def named(key: str, value: Any, paper: str = "") -> str:
    """A key's value as a header has it: editors by their display names, metrics in the paper's words, other names of
    conf/ as they are."""
    if pd.isna(value) or value == "":
        return ""
    if key == "T":
        return f"T={value}"
    if key == "metric":
        return METRICS.get(paper, {}).get(value, str(value).replace("_", " ").capitalize())
    if key == "editor" and value not in _WORDS:
        return display_name(value)
    return _WORDS.get(str(value), str(value))
