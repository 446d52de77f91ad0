"""A paper's table three times in the paper's layout: what was measured here, what the paper prints, the difference."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from kedit.reports.table import fill_commands as fill
from kedit.reports.table.captions import ability_facts, facts, failures, over_seeds
from kedit.reports.table.departures import noted
from kedit.reports.table.formats import DASH, Grid, Line, TableCell
from kedit.reports.table.layout import Block, Layout, Position, blocks, named
from kedit.reports.table.ranking import BOLD, ranked
from kedit.reports.table.significance import SAID as SIGNIFICANCE
from kedit.reports.table.table_cells import (
    Shown,
    TidyRow,
    difference_entry,
    gaps,
    hint_of,
    joined,
    measured_entry,
    of_paper,
    text_of,
)
from kedit.results.names import said as editor_names
from kedit.results.scores import PAPER

WIDTH = "in brackets: half-width of the 95 % bootstrap interval over cases"
ABILITY_WIDTH = "in brackets: half-width of the 95 % interval, by lm-eval's standard errors over questions"


def paper(layout: Layout) -> list[Grid]:
    """The printed numbers; best and second best are found from the numbers, not from the paper's typography."""
    texts = (
        f"the paper's numbers as printed{_edits(layout)}; {DASH}: the paper prints none, or the source text lost it; "
    )
    texts += BOLD

    def entry(record: TidyRow) -> TableCell:
        text = record["text"] + (f" ({record['ci_text']})" if record["ci_text"] else "")
        hint = "; ".join(filter(None, [record["note"], record["printed_as"]]))
        return TableCell(text if record["text"] else DASH, hint=hint)

    texts = "; ".join([texts, *editor_names(layout.printed["editor"])])
    return [
        _grid(block, layout, "the paper", ranked(block, entry, lambda record: record["text"]), f"{texts}.")
        for block in blocks(layout.printed, layout)
    ]


def _edits(layout: Layout) -> str:
    """After which edits the benchmarks of a table were asked."""
    found = dict.fromkeys(f"{dataset} at T={T}" for (_, _, T, _), dataset in layout.edited.items())
    return f", after edits of {' and of '.join(found)}" if found else ""


def ours(given: Shown) -> list[Grid]:
    """Measured numbers: the paper's table as far as it was run, then what was run beyond it."""
    inside, beyond = given.inside, given.beyond
    grids = (
        [_ours(given, block, inside) for block in blocks(joined(given, inside), given.layout)] if len(inside) else []
    )
    grids += [_ours(given, block, beyond) for block in blocks(gaps(given), given.layout)] if len(beyond) else []
    if len(beyond) and not len(inside):
        filled, reasons = fill.summary(given.layout.printed.to_dict("records"), given.layout)
        end = fill.how(filled, reasons, given.layout)
        said = f"{grids[-1].caption} Of the paper's own models and datasets nothing was run{end}."
        grids[-1] = replace(grids[-1], caption=said, commands=(*grids[-1].commands, *filled))
    return grids or [_nothing(given)]


def difference(given: Shown) -> list[Grid]:
    """Ours less the paper's, where both are."""
    both = joined(given, given.inside)
    if not both["value"].notna().any():
        said = "Nothing was run here that the paper has in this table."
        return [Grid(f"{given.layout.name}: difference", (), (), (), said)]
    said = (
        f"ours less the paper's number; {_width(given)} of ours; bold: the paper's number (its interval, where it "
        f"prints one; else what rounds to it) lies outside that interval; "
        f"{_facts(given, given.inside)}"
    )
    return [_difference(given, block, said) for block in blocks(both, given.layout)]


def _difference(given: Shown, block: Block, said: str) -> Grid:
    """One table of differences; letters say where a number is not defined as the paper's."""
    marks, notes = noted(given, block.records)
    entries = {at: replace(difference_entry(given, r), mark=marks.get(at, "")) for at, r in block.records.items()}
    return _grid(block, given.layout, "difference", entries, "; ".join([said, *notes]) + ".")


def _ours(given: Shown, block: Block, frame: pd.DataFrame) -> Grid:
    def entry(record: TidyRow) -> TableCell:
        return (
            measured_entry(given, record) if pd.notna(record["value"]) else TableCell(DASH, hint=hint_of(given, record))
        )

    entries = ranked(block, entry, lambda record: text_of(given, record))
    missing = [r for r in block.records.values() if pd.isna(r["value"]) and r.get("dash") is not True]
    sentences: list[str] = []
    commands: tuple[str, ...] = ()
    if missing:
        filled, reasons = fill.summary(missing, given.layout)
        beyond = [given.command(record) for record in missing if not of_paper(record)]
        commands = tuple(dict.fromkeys(beyond or filled))
        sentences = [f"{DASH}: not run{fill.how(commands, reasons, given.layout)}"]
    width = _width(given) + ("" if given.layout.benchmarks else over_seeds(given.seeds))
    close = [SIGNIFICANCE] if any(entry.mark for entry in entries.values()) else []
    names = editor_names(record["editor"] for record in block.records.values())
    caption = "; ".join([_facts(given, _there(block, frame)), width, BOLD, *close, *sentences, *names])
    return _grid(block, given.layout, "ours", entries, f"{caption}.", commands)


def _width(given: Shown) -> str:
    return ABILITY_WIDTH if given.layout.benchmarks else WIDTH


def _facts(given: Shown, frame: pd.DataFrame) -> str:
    if given.layout.benchmarks:
        said = [*ability_facts(frame, given.cells, given.layout.benchmarks), *_stand_ins(given)]
    else:
        paper, metrics = PAPER[given.layout.profile], set(frame["metric"])
        said = [*facts(frame, given.cells, given.score), paper.said, *_stand_ins(given)]
        said += [text for metric, text in paper.said_of.items() if metric in metrics]
    return "; ".join([*said, *failures(frame), *given.layout.notes])


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
    said = f"Nothing of this table was run here yet{fill.how(filled, reasons, given.layout)}."
    return Grid(f"{given.layout.name}: ours", (), (), (), said, tuple(filled))


# --- grids -----------------------------------------------------------------------------------------------------------


def _grid(
    block: Block,
    layout: Layout,
    view: str,
    entries: Mapping[tuple[Position, Position], TableCell],
    caption: str,
    commands: Sequence[str] = (),
) -> Grid:
    """A place that the block does not have (WikiBio has no portability) says nothing."""

    def names(keys: Sequence[str], place: Position) -> tuple[str, ...]:
        return tuple(named(key, value, layout.paper) for key, value in zip(keys, place, strict=True))

    lines = tuple(
        Line(names(layout.rows, row), tuple(entries.get((row, column), TableCell("")) for column in block.columns))
        for row in block.rows
    )
    title = f"{layout.name}: {view}" + (f" ({block.title})" if block.title else "")
    columns = tuple(names(layout.columns, column) for column in block.columns)
    return Grid(title, layout.rows, columns, lines, caption[0].upper() + caption[1:], tuple(commands))


def tidy(given: Shown) -> pd.DataFrame:
    """Every number of the table, one line each: ours with its interval, the paper's, the difference, and for one that
    is not there the command that fills it."""
    beyond = gaps(given)
    both = joined(given, given.inside)
    frame = pd.concat([both, beyond[[name for name in beyond if name in both]]], ignore_index=True)
    records = frame.to_dict("records")
    empty = [pd.isna(record["value"]) and record["dash"] is not True for record in records]
    commands = [hint_of(given, record) if lost else "" for record, lost in zip(records, empty, strict=True)]
    directories = [
        " ".join(map(str, paths)) if isinstance(paths, list) else "" for paths in frame["directories"].tolist()
    ]
    named_so = {"value": "ours", "text": "paper_printed", "theirs": "paper", "their_ci": "paper_ci"}
    return (
        frame.drop(columns=["dash", "replicates"])
        .assign(difference=frame["value"] - frame["theirs"], fill=commands, directories=directories)
        .assign(by_seed=[_seeds_text(value) for value in frame["by_seed"]])
        .rename(columns=named_so)
    )


def _seeds_text(by_seed: object) -> str:
    return "; ".join(f"{seed}: {value:g}" for seed, value in by_seed.items()) if isinstance(by_seed, Mapping) else ""
