"""What a run of a gated editor has left, for `python -m kedit.memory`: its entries, and which of them a query opens."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hydra.utils import get_class, instantiate
from torch import Tensor

from kedit.common.errors import InputError
from kedit.editors.gated import EntryRow, HasEntries
from kedit.loop.checkpoint import editor_state, load_checkpoint, model_state
from kedit.reports.table import formats
from kedit.reports.table.formats import Grid, Line
from kedit.results.cells import Cell
from kedit.run.cell import one_sentence

WAYS = {"folder", "kept"}  # how `learnt` names the directory of what a part was trained to


def is_gated(cell: Cell) -> bool:
    return issubclass(get_class(cell.config["editor"]["_target_"]), HasEntries)


@dataclass(frozen=True)
class SavedEntries:
    """A cell's editor as the last commit left its entries."""

    cell: Cell
    step: int
    cases: Mapping[int, str]  # number of an edit in it -> its case
    learnt: Mapping[str, Any]  # what the editor's `fit` reported

    @cached_property
    def editor(self) -> Any:
        """Parts that the run trained are read, not trained again."""
        config = dict(self.cell.config["editor"])
        for name, report in self.learnt.items():
            places = [report[way] for way in WAYS & set(report)] if isinstance(report, Mapping) else []
            if places and isinstance(config.get(name), Mapping) and "trained" in config[name]:
                config[name] = {**config[name], "trained": places[0]}
        with one_sentence():
            return instantiate(config, _convert_="all")

    @property
    def state(self) -> dict[str, Tensor | str]:
        """What the LM keeps beside its weights, and what the editor does."""
        return {**model_state(self.cell.directory, self.step), **editor_state(self.cell.directory, self.step)}

    def entries(self) -> list[EntryRow]:
        return self.editor.entries(self.state)

    # --- what is asked -----------------------------------------------------------------------------------------------

    def listed(self, edit: int | None = None) -> Grid:
        """Every entry, or those of one edit."""
        every = self.entries()
        known = {row["edit"] for row in every if "edit" in row}
        if edit is not None and edit not in known:
            raise InputError(f"--edit {edit}: {self.cell.directory} holds the edits {_ranges(known)}")
        rows = [row for row in every if edit is None or row.get("edit") == edit]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        lines = [self._line(row, columns) for row in rows]
        head = ("case", *columns[:1])
        shown = tuple((name,) for name in columns[1:]) or (("",),)
        return Grid("", head, shown, tuple(lines), f"{len(rows)} entries after step {self.step}.")

    def _line(self, row: EntryRow, columns: Sequence[str]) -> Line:
        texts = [_text(row.get(name)) for name in columns]
        case = self.cases.get(row["edit"], "-") if "edit" in row else "-"
        return Line((case, texts[0]), tuple(formats.TableCell(text) for text in texts[1:]))

    def explained(self, query: str) -> list[str]:
        """What the gate decides about a query, and what the model then says. The model is loaded."""
        with one_sentence():
            lm = instantiate(dict(self.cell.config["model"]), _convert_="all")
        if not self.editor.needs_train:
            self.editor.fit(lm, ())
        load_checkpoint(self.cell.directory, lm, self.editor)
        [said] = lm.generate([query], 10)
        told = {name: value for name, value in said.info.items() if name != "in_scope"}
        opened = "the gate opens" if said.info.get("in_scope") else "the gate stays shut"
        case = self.cases.get(told.get("edit", -1))
        about = "".join(f"; {name} {_text(value)}" for name, value in told.items())
        return [f"{opened}{about}{f' (case {case})' if case else ''}", f"The model says: {said.text.strip()}"]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _ranges(numbers: set[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}" if numbers else "of none"
