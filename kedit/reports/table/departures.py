"""Where a number of ours is not defined as the paper's: what a table of differences must say of it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from kedit.evaluation.metrics import metrics
from kedit.reports.table.captions import numbers
from kedit.reports.table.table_cells import Shown
from kedit.results.cells import Cell
from kedit.results.names import both_names, display_name

LETTERS = "abcdefghijklmnoprstuvwxyz"  # without q, which no terminal can raise
Place = tuple[Any, Any]


def footnotes(given: Shown, records: Mapping[Place, Mapping[str, Any]]) -> tuple[dict[Place, str], list[str]]:
    """(letters of each place, sentences of a caption): what holds for every number is said without a letter."""
    said = {at: list(dict.fromkeys(departures(given, record))) for at, record in records.items()}
    everywhere = [text for text in next(iter(said.values()), []) if all(text in texts for texts in said.values())]
    others = dict.fromkeys(text for texts in said.values() for text in texts if text not in everywhere)
    letters = {text: _letter(i) for i, text in enumerate(others)}
    marks = {at: ",".join(letters[text] for text in texts if text in letters) for at, texts in said.items()}
    sentences = [f"{letter}: {text}" for text, letter in letters.items()]
    return marks, ([f"unlike the paper everywhere: {', '.join(everywhere)}"] if everywhere else []) + sentences


def _letter(i: int) -> str:
    return LETTERS[i] if i < len(LETTERS) else f"{LETTERS[i // len(LETTERS) - 1]}{LETTERS[i % len(LETTERS)]}"


def departures(given: Shown, record: Mapping[str, Any]) -> Iterator[str]:
    """What differs: another editor, fewer edits, another way of scoring, other options, numbers, precision or data."""
    places = set(map(str, record["directories"]))
    cells = [cell for cell in given.cells if str(cell.directory) in places]
    if given.score != "token":
        yield f"scored as {metrics()[given.score].caption}"
    names = record.get("their_names")
    if isinstance(names, str) and names:
        yield f"the paper's own words are {names}"
    for cell in cells:
        yield from _of_cell(cell, record)
    yield from numbers(cells)


def _of_cell(cell: Cell, record: Mapping[str, Any]) -> Iterator[str]:
    meta = cell.meta
    if meta["editor"] != record["editor"] and record["editor"] != "none":
        yield f"{both_names(meta['editor'])} in the place of {display_name(record['editor'])}"
    if pd.notna(record["T"]) and isinstance(meta["T"], int) and meta["effective_T"] < meta["T"]:
        yield f"{meta['dataset']} has {meta['effective_T']} edits, not {meta['T']}"
    if meta["overrides"]:
        yield f"options {meta['overrides']}"
    if meta["order_seed"] is not None:
        yield f"order seed {meta['order_seed']}"
    if meta["model_is"]["dtype"] != "float32":
        yield f"in {meta['model_is']['dtype']}"
    dropped = meta["data"].get("dropped") or {}
    if dropped:
        yield f"dropped from {meta['dataset']}: {_counted(dropped)}"
    if not cell.finished:
        yield "a cell that is not finished"


def _counted(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {what}" for what, n in dropped.items())


def noted(given: Shown, records: Mapping[Place, Mapping[str, Any]]) -> tuple[dict[Place, str], Sequence[str]]:
    """`footnotes` of the places that have a number of ours and of the paper."""
    both = {at: r for at, r in records.items() if pd.notna(r["value"]) and pd.notna(r.get("theirs"))}
    return footnotes(given, both)
