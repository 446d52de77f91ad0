"""What stands in a table of ours: the places of the paper and beyond it, and what each says."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from statistics import stdev
from typing import Any

import pandas as pd

from kedit.common.axes import separate_overrides
from kedit.papers import KEYS
from kedit.reports.table import fill_commands as fill
from kedit.reports.table.formats import DASH, TableCell
from kedit.reports.table.layout import Layout, as_printed, belongs, edited_at
from kedit.reports.table.ranking import GROUP
from kedit.results.cells import Cell
from kedit.results.samples import UNEDITED
from kedit.results.scores import Score

TidyRow = Mapping[str, Any]


@dataclass(frozen=True)
class Shown:
    """What stands in a table of ours."""

    layout: Layout
    frame: pd.DataFrame  # measured
    cells: Sequence[Cell]
    score: Score = "token"
    home: Path = Path()  # where the page will be: links are relative to it

    @property
    def inside(self) -> pd.DataFrame:
        """What has a counterpart in the paper."""
        return self.frame[belongs(self.frame, self.layout)]

    @property
    def beyond(self) -> pd.DataFrame:
        """What the paper does not have: the world, another T, another model."""
        return self.frame[~belongs(self.frame, self.layout)]

    @property
    def seeds(self) -> list[int]:
        return sorted({cell.meta["seed"] for cell in self.cells})

    def command(self, record: TidyRow) -> str:
        """What fills an empty place beside these cells: with the options that all of them have, and with T as they were
        asked for it."""
        texts = {cell.meta["overrides"] for cell in self.cells}
        options = " ".join(map(quote, separate_overrides(texts.pop()))) if len(texts) == 1 else ""
        whole = all(not isinstance(cell.meta["T"], int) for cell in self.cells)
        return fill.command({**record, "T": None} if whole else record, self.layout, self.seeds, options)


def shown(layout: Layout, frame: pd.DataFrame, cells: Sequence[Cell], score: Score, home: Path) -> Shown:
    """The measured numbers of this table's metrics, and the unedited model only if it has that."""
    printed = layout.printed
    wanted = frame["metric"].isin(printed["metric"])
    if UNEDITED not in set(printed["editor"]):
        wanted &= frame["editor"] != UNEDITED
    if layout.benchmarks:
        layout = replace(layout, edited={**layout.edited, **edited_at(frame)})
    return Shown(layout, as_printed(frame[wanted], layout), cells, score, home)


# --- places ----------------------------------------------------------------------------------------------------------


def joined(given: Shown, frame: pd.DataFrame) -> pd.DataFrame:
    """Every place of the paper, with our number where there is one; then what we have beside it."""
    wanted = given.layout.printed[[*KEYS, "text", "dash", "ci", "value", "printed_as"]]
    printed = wanted.rename(columns={"value": "theirs", "ci": "their_ci", "printed_as": "their_names"})
    mine = frame.drop(columns=["paper", "table", "note", "printed_as"])
    places = given.layout.printed[KEYS]
    joined = printed.merge(mine, on=KEYS, how="left").set_index(places.index)
    others = mine.merge(places, on=KEYS, how="left", indicator=True)
    return pd.concat([joined, others[others["_merge"] == "left_only"].drop(columns="_merge")], ignore_index=True)


def gaps(given: Shown) -> pd.DataFrame:
    """What was run beyond the paper, and the places where an editor of it has not run on what another has."""
    frame = given.beyond
    places = frame[list(GROUP)].drop_duplicates().merge(frame[["editor"]].drop_duplicates(), how="cross")
    return as_printed(places.merge(frame, on=KEYS, how="left"), given.layout)


# --- what they say --------------------------------------------------------------------------------------------------


def text_of(given: Shown, record: TidyRow) -> str:
    if pd.isna(record["value"]):
        return ""
    return f"{record['value']:.{_decimals(given, record)}f}"


def _decimals(given: Shown, record: TidyRow) -> int:
    return max(1, given.layout.decimals.get(record["metric"], 1))


def measured_entry(given: Shown, record: TidyRow) -> TableCell:
    text = text_of(given, record) + _bracket(record["ci"], _decimals(given, record))
    return TableCell(text, hint=_behind(given, record), link=_link(given, record["directories"]))


def difference_entry(given: Shown, record: TidyRow) -> TableCell:
    if pd.isna(record["value"]) or pd.isna(record.get("theirs")):
        return TableCell(DASH)
    digits = _decimals(given, record)
    text = f"{record['value'] - record['theirs']:+.{digits}f}" + _bracket(record["ci"], digits)
    hint = f"ours {text_of(given, record)}, the paper {record['text']}; {_behind(given, record)}"
    return TableCell(text, bold=_outside(record), hint=hint, link=_link(given, record["directories"]))


def _outside(record: TidyRow) -> bool:
    """Is the paper's number, as far as it is printed, surely not ours? Both as intervals that do not meet."""
    rounding = 0.5 * 10 ** -len(record["text"].partition(".")[2])
    theirs = max(rounding, 0 if pd.isna(record["their_ci"]) else record["their_ci"])
    return record["theirs"] + theirs < record["low"] or record["theirs"] - theirs > record["high"]


def _bracket(width: float, digits: int) -> str:
    return f" ({width:.{digits}f})" if math.isfinite(width) else ""


def _behind(given: Shown, record: TidyRow) -> str:
    """N and the interval of one number."""
    ends = f", 95 % interval {record['low']:.2f} to {record['high']:.2f}" if math.isfinite(record["ci"]) else ""
    failed = f", {int(record['failed'])} edits failed" if record["failed"] else ""
    return f"N={counted(record)} {given.layout.unit}{of_each_seed(record)}{ends}{failed}"


def of_each_seed(record: TidyRow) -> str:
    """How many seeds a number is the mean of, and each one's own number with their standard deviation."""
    if not record["seeds"] > 1:
        return ""
    said = f" in each of {int(record['seeds'])} seeds"
    by_seed = record.get("by_seed")
    if not isinstance(by_seed, Mapping):
        return said
    each = ", ".join(f"{seed}: {value:.2f}" for seed, value in by_seed.items())
    return f"{said} ({each}; standard deviation {stdev(by_seed.values()):.2f})"


def counted(record: TidyRow) -> str:
    """Cases of each seed; their mean if seeds have different numbers of them."""
    each = record["n"] / max(1, record["seeds"])
    return f"{each:.0f}" if each == int(each) else f"{each:.1f}"


def of_paper(record: TidyRow) -> bool:
    """Is it a place of the paper's table?"""
    return isinstance(record.get("text"), str)


def hint_of(given: Shown, record: TidyRow) -> str:
    """What fills an empty place, or why nothing does."""
    if record.get("dash") is True:
        return "the paper prints none"
    if not of_paper(record):
        return given.command(record)
    return fill.hint(record, given.layout)


def _link(given: Shown, directories: Sequence[Path]) -> str:
    """To the run; of several (seeds, an average's datasets) to the folder that holds them."""
    paths = [Path(directory).resolve() for directory in directories]
    common = paths[0] if len(set(paths)) == 1 else Path(os.path.commonpath(paths))
    return Path(os.path.relpath(common, given.home.resolve())).as_posix() + "/"
