"""What a page shows of single questions: each cell's answers, packed, beside those of the unedited model."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from kedit.cases import KINDS, questions_of
from kedit.reports.answers import PLACE, TEXT, cases_of
from kedit.results.cells import Cell
from kedit.results.names import both_names

log = logging.getLogger(__name__)
Place = tuple[Any, ...]


def parts(cells: Sequence[Cell]) -> tuple[list[dict[str, Any]], Iterator[tuple[str, Any]]]:
    """(what a page must know of each set of cells that were asked the same, the parts it may load by name)."""
    together = list(_asked_the_same(cells).items())
    known = [
        {
            "part": f"questions{i}",
            "caption": caption,
            "cells": [{"part": f"answers{i}-{j}", "name": _name(cell)} for j, cell in enumerate(found)],
        }
        for i, ((caption, _), found) in enumerate(together)
    ]
    return known, (part for i, (_, found) in enumerate(together) for part in _of_group(i, found))


def _asked_the_same(cells: Sequence[Cell]) -> dict[tuple[str, int], list[Cell]]:
    """Cells by what they are and by their questions, whatever else their options are."""
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        if cell.tested and _scoring(cell):
            caption = "{model} on {dataset}, {setting}, T={T}, seed {seed}".format(**cell.meta)
            groups.setdefault((caption, hash(tuple(_places(_rows(cell, "before"))))), []).append(cell)
    return groups


def _name(cell: Cell) -> str:
    options = f", {cell.meta['overrides']}" if cell.meta["overrides"] else ""
    return f"{both_names(cell.meta['editor'])}{options}"


def _scoring(cell: Cell) -> str | None:
    """In which way a cell's answers were scored that have a text: teacher-forced, else by free generation."""
    there = set(cell.rows["scoring"].dropna())
    return next((scoring for scoring, text in TEXT.items() if scoring in there and text in cell.rows), None)


def _of_group(number: int, cells: Sequence[Cell]) -> Iterator[tuple[str, Any]]:
    before, after = _said(cells[0], "before"), [_said(cell, "test") for cell in cells]
    places = list(before)
    prompts, gold = _prompts(cells[0]), _wanted(cells[0])
    questions = [[*place[:3], prompts.get(place, ""), gold.get(place, "")] for place in places]
    yield f"questions{number}", {"questions": questions, "before": [before[place] for place in places]}
    for i, said in enumerate(after):
        yield f"answers{number}-{i}", [said.get(place) for place in places]


def _rows(cell: Cell, when: str) -> pd.DataFrame:
    """The last rows of each question that has a wanted answer."""
    rows = cell.rows
    chosen = rows[(rows["when"] == when) & (rows["scoring"] == _scoring(cell)) & rows["gold"].notna()]
    return chosen.drop_duplicates(PLACE, keep="last")


def _said(cell: Cell, when: str) -> dict[Place, list[Any]]:
    """For each question the answer, and whether it is right (1, 0, or None: not told)."""
    rows = _rows(cell, when)
    texts = rows[TEXT[_scoring(cell) or "forced"]].fillna("").astype(str).str.strip()
    right = rows["exact"] if "exact" in rows else pd.Series(None, index=rows.index, dtype=object)
    marks = [None if pd.isna(mark) else int(mark) for mark in right]
    return {place: [text, mark] for place, text, mark in zip(_places(rows), texts, marks, strict=True)}


def _wanted(cell: Cell) -> dict[Place, str]:
    rows = _rows(cell, "before")
    return dict(zip(_places(rows), rows["gold"].astype(str).str.strip(), strict=True))


def _places(rows: pd.DataFrame) -> list[Place]:
    return list(rows[PLACE].itertuples(index=False, name=None))


def _prompts(cell: Cell) -> dict[Place, str]:
    """The prompt of each question, from the cell's dataset; empty if it cannot be read any more."""
    try:
        cases = cases_of(cell)
    except Exception as error:  # whatever keeps a dataset from being read: its answers are shown all the same
        log.warning("the page shows no prompts: the dataset of %s cannot be read (%s)", cell.directory, error)
        return {}
    wanted = set(cell.rows["case"])
    kinds = tuple(kind for kind in KINDS if kind in set(cell.rows["kind"]))
    return {
        (case.id, q.probe.kind, q.probe.group, q.index): q.probe.prompt
        for case in cases.values()
        if case.id in wanted
        for q in questions_of(case, kinds)
    }
