"""The memory of edits that a run has left: python -m kedit.memory CELL list|search|explain. Needs no language model
(explain of GRACE, MELO, WISE and SERAC, whose gates read one, loads the run's).

list shows every stored string, search those nearest to a text, explain what the editor recalls for a query: what is
near, what the filter says of it, and what the model would read. CELL is a cell's directory, or a sweep with one cell;
it must hold its state: an unfinished one does, a finished one when it ran with keep_state=true.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.errors import HydraException
from hydra.utils import get_class, instantiate
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from kedit.common.errors import InputError
from kedit.common.terminal import use_safe_output
from kedit.editors.gated import HasEntries
from kedit.editors.incontext import Candidate, InContext
from kedit.editors.incontext.edit_memory import MemoryEntry
from kedit.loop.checkpoint import committed_step, editor_state, model_state
from kedit.reports.table import formats
from kedit.reports.table.formats import Grid, Line
from kedit.results.cell_files import STEPS
from kedit.results.cells import Cell, find
from kedit.results.integrity import read_records
from kedit.results.routing import edit_numbers
from kedit.run.cell import one_sentence
from kedit.run.gated_memory import SavedEntries, is_gated


@dataclass(frozen=True)
class SavedMemory:
    """A cell's editor as the last commit left its memory, with the parts that recall and no others."""

    cell: Cell
    step: int

    @cached_property
    def config(self) -> Mapping[str, Any]:
        return self.cell.config["editor"]

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        return [record for record in read_records(self.cell.directory, STEPS) if record["step"] <= self.step]

    @cached_property
    def cases(self) -> dict[int, str]:
        """The case of each stored edit, by its number."""
        numbers = edit_numbers(pd.DataFrame(self.steps))
        last = numbers[numbers["memory"] == numbers["memory"].max()]
        return dict(zip(last["edit"], last["case"], strict=True))

    def editor(self, *, filtered: bool = False, k: int | None = None) -> InContext:
        """`filtered`: with its filter; `k`: retrieving so many."""
        config: dict[str, Any] = {**self.config}
        config |= {name: None for name in ("augmentation", "alignment") if name in config}
        if "filter" in config:
            config["filter"] = self._filter if filtered else None
        if "trained" in config:
            config["trained"] = self.config["trained"] or self._trained(self.steps[0]["learnt"], "prompt generator")
        config["memory"] = config["memory"] | ({"k": k} if k else {})
        with one_sentence():
            editor = instantiate(config, _convert_="all")
        editor.memory.load_state(editor_state(self.cell.directory, self.step))
        return editor

    @property
    def measure(self) -> str:
        return "cosine" if self.config["memory"].get("normalize", True) else "product"

    def line(self, entry: MemoryEntry, *before: str) -> Line:
        """One stored string, behind what is said of it."""
        place = (str(entry.edit), self.cases.get(entry.edit, "-"), entry.form)
        return Line((*before, *place), (formats.TableCell(entry.text),))

    @property
    def _filter(self) -> Mapping[str, Any] | None:
        """The filter as it was trained in the run."""
        config = self.config.get("filter")
        if not config or config["trained"]:
            return config
        learnt = self.steps[0]["learnt"]["filter"]
        found = {"recall": None, "threshold": learnt["threshold"]} if config.get("recall") is not None else {}
        return {**config, **found, "trained": self._trained(learnt, "filter")}

    def _trained(self, learnt: Mapping[str, Any], what: str) -> str:
        """The folder of what the run has trained."""
        folder = str(learnt["folder"])
        if not Path(folder).is_dir():
            raise InputError(
                f"{folder}: the {what} that {self.cell.directory} trained is not in the cache any more; any run with "
                "the same dataset and editor trains it again"
            )
        return folder


def saved_memory(place: str) -> SavedMemory:
    """Raises InputError where there is no one cell with a memory."""
    cells = find(place)
    where = cells[0].directory
    if len(cells) > 1:
        raise InputError(f"{place}: {len(cells)} runs there; give the directory of one, e.g. {where}")
    if not issubclass(get_class(cells[0].config["editor"]["_target_"]), InContext | HasEntries):
        raise InputError(
            f"{where}: its editor {cells[0].meta['editor']} has no memory of edits; give a run of one, e.g. ike"
        )
    found = SavedMemory(cells[0], committed_step(where))
    if found.step < 0:
        raise InputError(f"{where} has not kept its state; remove it and run it again with keep_state=true")
    if found.step == 0 or not (editor_state(where, found.step) or model_state(where, found.step)):
        raise InputError(
            f"{where}: its memory is empty after step {found.step}: no edit was made yet, or setting="
            f"{cells[0].meta['setting']} has restored the model after its test; a sequential run keeps all"
        )
    return found


# --- what is asked ---------------------------------------------------------------------------------------------------


def listed(of: SavedMemory, edit: int | None = None) -> Grid:
    """Every stored string, or those of one edit."""
    memory = of.editor().memory
    if edit is not None and not 0 <= edit < memory.edits:
        raise InputError(f"--edit {edit}: {of.cell.directory} holds the edits 0 to {memory.edits - 1}")
    lines = [of.line(entry) for entry in memory.entries if edit in (None, entry.edit)]
    return _grid((), lines, f"{len(memory.entries)} strings of {memory.edits} edits after step {of.step}.")


def found(of: SavedMemory, text: str, k: int) -> Grid:
    """The k nearest strings, whatever the filter would say of them."""
    if k < 1:
        raise InputError(f"-k {k}: give at least 1")
    memory = of.editor(k=k).memory
    memory.load()
    [hits] = memory.nearest([text])
    lines = [of.line(hit.entry, f"{hit.cosine:.3f}") for hit in hits]
    return _grid((of.measure,), lines, f"The nearest of {len(memory.entries)} strings.")


def explained(of: SavedMemory, query: str) -> tuple[Grid, list[str]]:
    """What is recalled for a query, string by string, and what follows from it."""
    editor = of.editor(filtered=True)
    editor.memory.load()
    [retrieved] = editor.retrieve([query])
    chosen = editor.in_context(retrieved)
    lines = [
        of.line(one.hit.entry, f"{one.hit.cosine:.3f}", _probability(one), verdict(editor, one, chosen))
        for one in retrieved
    ]
    accepts = f"accepted from probability {editor.filter.threshold:g}" if editor.filter else "no filter: all accepted"
    said = f"The {len(retrieved)} nearest of {len(editor.memory.entries)} strings; {accepts}."
    grid = _grid((of.measure, "probability", "verdict"), lines, said)
    return grid, list(consequences(of, editor, query, [one.hit.entry.text for one in chosen]))


def verdict(editor: InContext, one: Candidate, chosen: Sequence[Candidate]) -> str:
    """Why it is in the prompt or not."""
    if one in chosen:
        return "in context"
    return f"accepted, beyond inject={editor.inject}" if one.accepted else "refused"


def consequences(of: SavedMemory, editor: InContext, query: str, facts: Sequence[str]) -> Iterator[str]:
    """What the model would read, and which model reads it."""
    by = of.cell.config["eval"]["routed_by"]
    if by != "prompt":
        yield f"In this run questions were not looked up by their prompt alone: eval.routed_by={by}."
    written = editor.prompt.write(query, facts) if facts else query
    if not facts:
        yield "Nothing is injected: the query stays as it is."
    elif written is None:
        yield f"Its prompt ({type(editor.prompt).__name__}) is written by the loaded model or from training cases."
    else:
        yield f"The prompt:\n\n{written}\n"
    if of.config.get("alignment"):
        adapted = facts or editor.aligned_when == "always"
        yield f"It is read by {'the aligned model' if adapted else 'the model without its adapter'}."


def _probability(one: Candidate) -> str:
    return "-" if one.probability is None else f"{one.probability:.3f}"


def _grid(before: tuple[str, ...], lines: Sequence[Line], said: str) -> Grid:
    """`before`: the columns that a question adds to those of SavedMemory.line."""
    return Grid("", (*before, "edit", "case", "form"), (("text",),), tuple(lines), said, prose=("text",))


# --- command line ----------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m kedit.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cell", help="a cell's directory, or a sweep with one cell")
    commands = parser.add_subparsers(dest="command", required=True)
    every = commands.add_parser("list", help="every stored string")
    every.add_argument("--edit", type=int, metavar="N", help="of this edit only (from 0, as in the rows)")
    search = commands.add_parser("search", help="the strings nearest to a text")
    search.add_argument("text")
    search.add_argument("-k", type=int, default=10, help="how many (default: 10)")
    explain = commands.add_parser("explain", help="why a query is given an edit to read, and which")
    explain.add_argument("query")
    return parser.parse_args()


def _show_gated(of: SavedEntries, given: argparse.Namespace) -> None:
    if given.command == "search":
        raise InputError(f"search looks through texts, which {of.cell.meta['editor']} has none of; use list or explain")
    if given.command == "list":
        return formats.show([of.listed(given.edit)])
    for line in of.explained(given.query):
        Console(soft_wrap=True, highlight=False).print(line, markup=False)


def main() -> None:
    use_safe_output()
    given = arguments()
    disable_progress_bar()
    try:
        of = saved_memory(given.cell)
        if is_gated(of.cell):
            _show_gated(SavedEntries(of.cell, of.step, of.cases, of.steps[0].get("learnt", {})), given)
        elif given.command == "list":
            formats.show([listed(of, given.edit)])
        elif given.command == "search":
            formats.show([found(of, given.text, given.k)])
        else:
            grid, lines = explained(of, given.query)
            formats.show([grid])
            for line in lines:
                Console(soft_wrap=True, highlight=False).print(line, markup=False)
    except (InputError, HydraException) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
