"""A paper's table three times in the paper's layout: what was measured here, what the paper prints, the difference."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from kedit import fill
from kedit.captions import facts, failures, over_seeds
from kedit.cells import Cell
from kedit.formats import DASH, Entry, Grid, Line
from kedit.layout import Block, Layout, Place, as_printed, belongs, blocks, named
from kedit.measured import UNEDITED
from kedit.papers import KEYS
from kedit.ranking import BOLD, GROUP, ranked
from kedit.scores import PAPER, Score

View = Literal["ours", "paper", "difference"]
WIDTH = "in brackets: half-width of the 95 % bootstrap interval over cases"
Record = Mapping[str, Any]


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


def shown(layout: Layout, frame: pd.DataFrame, cells: Sequence[Cell], score: Score, home: Path) -> Shown:
    """Of what was measured, the metrics that this table has, and the unedited model only if it has that."""
    printed = layout.printed
    wanted = frame["metric"].isin(printed["metric"])
    if UNEDITED not in set(printed["editor"]):
        wanted &= frame["editor"] != UNEDITED
    return Shown(layout, as_printed(frame[wanted], layout), cells, score, home)


# --- the three views -------------------------------------------------------------------------------------------------


def paper(layout: Layout) -> list[Grid]:
    """As printed; best and second best are found from the numbers, not from the paper's typography."""
    texts = f"the paper's numbers as printed; {DASH}: the paper prints none, or the source text lost it; {BOLD}"

    def entry(record: Record) -> Entry:
        text = record["text"] + (f" ({record['ci_text']})" if record["ci_text"] else "")
        hint = "; ".join(filter(None, [record["note"], record["printed_as"]]))
        return Entry(text if record["text"] else DASH, hint=hint)

    return [
        _grid(block, layout, "the paper", ranked(block, entry, lambda record: record["text"]), f"{texts}.")
        for block in blocks(layout.printed, layout)
    ]


def ours(given: Shown) -> list[Grid]:
    """Measured numbers: the paper's table as far as it was run, then what was run beyond it."""
    inside, beyond = given.inside, given.beyond
    grids = (
        [_ours(given, block, inside) for block in blocks(_joined(given, inside), given.layout)] if len(inside) else []
    )
    grids += [_ours(given, block, beyond) for block in blocks(_gaps(given), given.layout)] if len(beyond) else []
    if len(beyond) and not len(inside):
        filled, reasons = fill.summary(given.layout.printed.to_dict("records"), given.layout)
        said = f"{grids[-1].caption} Of the paper's own models and datasets nothing was run{fill.how(filled, reasons)}."
        grids[-1] = replace(grids[-1], caption=said, commands=(*grids[-1].commands, *filled))
    return grids or [_nothing(given)]


def difference(given: Shown) -> list[Grid]:
    """Ours less the paper's, where both are."""
    both = _joined(given, given.inside)
    if not both["value"].notna().any():
        said = "Nothing was run here that the paper has in this table."
        return [Grid(f"{given.layout.name}: difference", (), (), (), said)]
    said = (
        f"ours less the paper's number; {WIDTH} of ours; bold: the paper's number lies outside that interval; "
        f"{_facts(given, given.inside)}."
    )
    return [
        _grid(block, given.layout, "difference", {at: _less(given, r) for at, r in block.records.items()}, said)
        for block in blocks(both, given.layout)
    ]


def _ours(given: Shown, block: Block, frame: pd.DataFrame) -> Grid:
    def entry(record: Record) -> Entry:
        return _measured(given, record) if pd.notna(record["value"]) else Entry(DASH, hint=_hint(given, record))

    entries = ranked(block, entry, lambda record: _text(given, record))
    missing = [r for r in block.records.values() if pd.isna(r["value"]) and r.get("dash") is not True]
    sentences: list[str] = []
    commands: tuple[str, ...] = ()
    if missing:
        filled, reasons = fill.summary(missing, given.layout)
        beyond = [fill.command(record, given.layout, given.seeds) for record in missing if not _of_paper(record)]
        commands = tuple(dict.fromkeys(beyond or filled))
        sentences = [f"{DASH}: not run{fill.how(commands, reasons)}"]
    caption = "; ".join([_facts(given, _there(block, frame)), WIDTH + over_seeds(given.seeds), BOLD, *sentences])
    return _grid(block, given.layout, "ours", entries, f"{caption}.", commands)


def _facts(given: Shown, frame: pd.DataFrame) -> str:
    said = [*facts(frame, given.cells, given.score), PAPER[given.layout.paper].said, *_stand_ins(given)]
    return "; ".join([*said, *failures(frame)])


def _stand_ins(given: Shown) -> list[str]:
    ran = {cell.meta["editor"] for cell in given.cells}
    same = given.layout.same_as.items()
    return [f"{theirs} is editor={mine}" for mine, theirs in same if mine in ran and theirs not in ran]


def _there(block: Block, frame: pd.DataFrame) -> pd.DataFrame:
    """What of the frame stands in this block."""
    records = [record for record in block.records.values() if pd.notna(record["value"])]
    return pd.DataFrame(records) if records else frame


def _nothing(given: Shown) -> Grid:
    filled, reasons = fill.summary(given.layout.printed.to_dict("records"), given.layout)
    said = f"Nothing of this table was run here yet{fill.how(filled, reasons)}."
    return Grid(f"{given.layout.name}: ours", (), (), (), said, tuple(filled))


# --- entries ---------------------------------------------------------------------------------------------------------


def _joined(given: Shown, frame: pd.DataFrame) -> pd.DataFrame:
    """Every place of the paper, with our number where there is one; then what we have beside it."""
    wanted = given.layout.printed[[*KEYS, "text", "dash", "ci", "value"]]
    printed = wanted.rename(columns={"value": "theirs", "ci": "their_ci"})
    mine = frame.drop(columns=["paper", "table", "note", "printed_as"])
    places = given.layout.printed[KEYS]
    joined = printed.merge(mine, on=KEYS, how="left").set_index(places.index)
    others = mine.merge(places, on=KEYS, how="left", indicator=True)
    return pd.concat([joined, others[others["_merge"] == "left_only"].drop(columns="_merge")], ignore_index=True)


def _gaps(given: Shown) -> pd.DataFrame:
    """What was run beyond the paper, and the places where an editor of it has not run on what another has."""
    frame = given.beyond
    places = frame[list(GROUP)].drop_duplicates().merge(frame[["editor"]].drop_duplicates(), how="cross")
    return as_printed(places.merge(frame, on=KEYS, how="left"), given.layout)


def _text(given: Shown, record: Record) -> str:
    if pd.isna(record["value"]):
        return ""
    return f"{record['value']:.{_decimals(given, record)}f}"


def _decimals(given: Shown, record: Record) -> int:
    return max(1, given.layout.decimals.get(record["metric"], 1))


def _measured(given: Shown, record: Record) -> Entry:
    text = _text(given, record) + _bracket(record["ci"], _decimals(given, record))
    return Entry(text, hint=_behind(record), link=_link(given, record["directories"]))


def _less(given: Shown, record: Record) -> Entry:
    if pd.isna(record["value"]) or pd.isna(record.get("theirs")):
        return Entry(DASH)
    digits = _decimals(given, record)
    text = f"{record['value'] - record['theirs']:+.{digits}f}" + _bracket(record["ci"], digits)
    outside = not record["low"] <= record["theirs"] <= record["high"] if math.isfinite(record["ci"]) else False
    hint = f"ours {_text(given, record)}, the paper {record['text']}; {_behind(record)}"
    return Entry(text, bold=outside, hint=hint, link=_link(given, record["directories"]))


def _bracket(width: float, digits: int) -> str:
    return f" ({width:.{digits}f})" if math.isfinite(width) else ""


def _behind(record: Record) -> str:
    """N and the interval of one number."""
    seeds = f" of {int(record['seeds'])} seeds" if record["seeds"] > 1 else ""
    ends = f", 95 % interval {record['low']:.2f} to {record['high']:.2f}" if math.isfinite(record["ci"]) else ""
    failed = f", {int(record['failed'])} edits failed" if record["failed"] else ""
    return f"N={int(record['n'])} cases{seeds}{ends}{failed}"


def _of_paper(record: Record) -> bool:
    """Is it a place of the paper's table?"""
    return isinstance(record.get("text"), str)


def _hint(given: Shown, record: Record) -> str:
    """What fills an empty place, or why nothing does."""
    if record.get("dash") is True:
        return "the paper prints none"
    if not _of_paper(record):
        return fill.command(record, given.layout, given.seeds)
    return fill.why_not(record, given.layout) or fill.command(record, given.layout)


def _link(given: Shown, directories: Sequence[Path]) -> str:
    """To the run; of several (seeds, an average's datasets) to the folder that holds them."""
    paths = [Path(directory).resolve() for directory in directories]
    common = paths[0] if len(set(paths)) == 1 else Path(os.path.commonpath(paths))
    return Path(os.path.relpath(common, given.home.resolve())).as_posix() + "/"


# --- grids -----------------------------------------------------------------------------------------------------------


def _grid(
    block: Block,
    layout: Layout,
    view: str,
    entries: Mapping[tuple[Place, Place], Entry],
    caption: str,
    commands: Sequence[str] = (),
) -> Grid:
    """A place that the block does not have (WikiBio has no portability) says nothing."""

    def names(keys: Sequence[str], place: Place) -> tuple[str, ...]:
        return tuple(named(key, value, layout.paper) for key, value in zip(keys, place, strict=True))

    lines = tuple(
        Line(names(layout.rows, row), tuple(entries.get((row, column), Entry("")) for column in block.columns))
        for row in block.rows
    )
    title = f"{layout.name}: {view}" + (f" ({block.title})" if block.title else "")
    columns = tuple(names(layout.columns, column) for column in block.columns)
    return Grid(title, layout.rows, columns, lines, caption[0].upper() + caption[1:], tuple(commands))


def tidy(given: Shown) -> pd.DataFrame:
    """Every number of the table, one line each: ours with its interval, the paper's, the difference, and for one that
    is not there the command that fills it."""
    beyond = _gaps(given)
    both = _joined(given, given.inside)
    frame = pd.concat([both, beyond[[name for name in beyond if name in both]]], ignore_index=True)
    records = frame.to_dict("records")
    empty = [pd.isna(record["value"]) and record["dash"] is not True for record in records]
    commands = [_hint(given, record) if lost else "" for record, lost in zip(records, empty, strict=True)]
    directories = [
        " ".join(map(str, paths)) if isinstance(paths, list) else "" for paths in frame["directories"].tolist()
    ]
    named_so = {"value": "ours", "text": "paper_printed", "theirs": "paper", "their_ci": "paper_ci"}
    return (
        frame.drop(columns="dash")
        .assign(difference=frame["value"] - frame["theirs"], fill=commands, directories=directories)
        .rename(columns=named_so)
    )
