"""What has run, runs, failed or is missing: python -m kedit.status [SWEEP]. Needs no GPU and no model.

Exit status for scripts: 0 every cell is done; 1 a cell failed or is damaged (or nothing is there); 2 none did, but
cells run, were stopped, are missing or blocked (they lack a file or a model).
"""

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kedit.common.cache import contents, prune
from kedit.common.errors import InputError
from kedit.common.paths import ROOT, runs
from kedit.common.terminal import use_safe_output
from kedit.common.text_files import read_text
from kedit.results.cell_files import (
    ERROR,
    META,
    ROWS,
    STATUS,
    STEPS,
    cell_directories,
    is_finished,
    is_running,
    requested_cells,
)
from kedit.results.integrity import DamagedFile, read_json, read_records

STYLES = {
    "done": "green",
    "running": "yellow",
    "stopped": "magenta",
    "failed": "red",
    "blocked": "red",
    "missing": "dim",
}


@dataclass(frozen=True)
class Seen:
    """One cell of a sweep as its directory shows it, if there is one."""

    sweep: Path
    directory: str  # below the sweep: model/dataset/editor/setting-T/seed[/overrides]
    needs: tuple[str, ...] = ()  # what it did not find when it was last asked for, a sentence each

    @property
    def place(self) -> Path:
        return self.sweep / self.directory

    @property
    def row(self) -> str:
        model, dataset, editor, _, _, *hashed = Path(self.directory).parts
        return "\n".join(
            [f"{model} / {dataset} / {editor}", *([self.meta.get("overrides", hashed[0])] if hashed else [])]
        )

    @property
    def column(self) -> tuple[str, ...]:
        return Path(self.directory).parts[3:5]

    @cached_property
    def state(self) -> str:
        """done, running (a process holds it), failed, stopped (its process is gone), blocked (it lacks a file or a
        model) or missing (never started)."""
        status = read_text(self.place / STATUS)
        if is_finished(self.place):
            return "done"
        if status and is_running(self.place):
            return "running"
        if (self.place / ERROR).exists():
            return "failed"
        return "stopped" if status else "blocked" if self.needs else "missing"

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Empty if it is not there, or damaged."""
        return self._read[0]

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """Empty if there are none, or one is damaged."""
        return self._read[1]

    @property
    def damage(self) -> str:
        """Which file cannot be read; empty if all can."""
        return self._read[2]

    @cached_property
    def _read(self) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
        meta: dict[str, Any] = {}
        try:
            meta = read_json(self.place, META) if (self.place / META).exists() else {}
            return meta, read_records(self.place, STEPS), ""
        except DamagedFile as damaged:
            return meta, [], str(damaged)

    @property
    def edits(self) -> int:
        return sum(len(step.get("cases", ())) for step in self.steps)

    @property
    def wanted(self) -> int | None:
        """Edits it will have made; unknown before it was begun."""
        return self.meta.get("cases")

    @property
    def seconds(self) -> float:
        """Of editing and testing so far."""
        return sum(step.get("edit_s", 0.0) + step.get("eval_s", 0.0) for step in self.steps)

    @property
    def rate(self) -> float:
        """Edits per second of editing."""
        editing = sum(step.get("edit_s", 0.0) for step in self.steps)
        return self.edits / editing if editing else math.nan

    @property
    def left(self) -> float:
        """Seconds it still needs, at its pace so far."""
        if self.state == "done":
            return 0.0
        if not self.edits or not self.wanted:
            return math.nan
        return (self.wanted - self.edits) * self.seconds / self.edits

    @property
    def error(self) -> str:
        return (read_text(self.place / ERROR) or "").strip().split("\n")[-1]


def look(sweep: Path) -> list[Seen]:
    """Every cell that was requested of a sweep or is found below it."""
    requested = {cell["directory"]: tuple(cell.get("missing", ())) for cell in requested_cells(sweep)}
    found = {str(path.relative_to(sweep)) for path in cell_directories(sweep, STATUS, ROWS)}
    cells = sorted(map(Path, {*requested, *found}), key=lambda cell: _natural(cell.parts))
    return [Seen(sweep, str(cell), requested.get(str(cell), ())) for cell in cells if _is_cell(cell)]


def _is_cell(directory: Path) -> bool:
    """model/dataset/editor/setting-T/seed[/overrides]."""
    return len(directory.parts) in (5, 6)


def sweep_exists(name: str) -> bool:
    """Whether sweeps/ has one of this name."""
    return (ROOT / "sweeps" / f"{name}.yaml").is_file()


def _natural(parts: tuple[str, ...]) -> list[list[str | int]]:
    """T10 after T5."""
    return [[int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", part)] for part in parts]


def remaining(cells: Sequence[Seen]) -> float:
    """Seconds that one process needs for all that is not done, at the pace of what has run; NaN where nothing has."""
    paces = [cell.seconds / cell.edits for cell in cells if cell.edits]
    wanted = [cell.wanted for cell in cells if cell.wanted]
    if not paces or not wanted:
        return 0.0 if all(cell.state == "done" for cell in cells) else math.nan
    fresh = mean(wanted) * mean(paces)
    return sum(fresh if math.isnan(cell.left) else cell.left for cell in cells)


def blocks(cells: Sequence[Seen]) -> dict[str, int]:
    """What is missing: sentence -> how many cells are blocked by it."""
    return dict(Counter(sentence for cell in cells if cell.state == "blocked" for sentence in cell.needs))


def code(cells: Sequence[Seen]) -> int:
    """The exit status: 0 all done, 1 something failed, 2 something is yet to be done."""
    states = {cell.state for cell in cells}
    if "failed" in states or any(cell.damage for cell in cells):
        return 1
    return 0 if states <= {"done"} else 2


# --- showing ---------------------------------------------------------------------------------------------------------


def grid(cells: Sequence[Seen]) -> Table:
    """One line for each model, dataset and editor; one column for each setting, T and seed."""
    columns = sorted({cell.column for cell in cells}, key=_natural)
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("model / dataset / editor", max_width=60, overflow="fold")
    for column in columns:
        table.add_column(Text("\n".join(column)), justify="right", no_wrap=True)
    by_place = {(cell.row, cell.column): cell for cell in cells}
    for row in dict.fromkeys(cell.row for cell in cells):
        table.add_row(Text(row), *(_shown(by_place.get((row, column))) for column in columns))
    return table


def _shown(cell: Seen | None) -> Text:
    if cell is None:
        return Text("")
    said = [cell.state]
    if cell.state not in ("done", "missing", "blocked"):
        said.append(f"{cell.edits}/{cell.wanted or '?'}")
    if cell.state == "running" and not math.isnan(cell.left):
        said.append(f"ETA {_duration(cell.left)}")
    if not math.isnan(cell.rate):
        said.append(f"{cell.rate:.3g}/s")
    return Text("\n".join([" ".join(said[:2]), " ".join(said[2:])]).strip(), style=STYLES[cell.state])


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def lines(cells: Sequence[Seen]) -> Iterator[str]:
    """What the grid does not show: counts, time left, errors, which models exactly."""
    counts = {state: sum(cell.state == state for cell in cells) for state in STYLES}
    left = remaining(cells)
    total = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    time_left = "" if not left or math.isnan(left) else f"; about {_duration(left)} left in one process"
    yield f"{len(cells)} cells: {total}{time_left} (/s: edits per second of editing)"
    for sentence, number in blocks(cells).items():
        yield f"blocks {number} cell{'s' * (number > 1)}: {sentence}"
    for cell in cells:
        if cell.state == "failed":
            yield f"failed: {cell.directory}: {cell.error}"
        if cell.damage:
            yield cell.damage
    models = {(cell.directory.split("/")[0], cell.meta.get("model_is", {}).get("identity")) for cell in cells}
    for name, identity in sorted((model for model in models if model[1]), key=str):
        yield f"model {name}: {identity}"


def show(sweep: Path, cells: Sequence[Seen]) -> None:
    """Print one sweep's grid; a narrow terminal breaks its lines: nothing is cut off."""
    console, table = Console(soft_wrap=True, highlight=False), grid(cells)
    whole = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    console.print(Text(sweep.name, style="bold"))
    Console(width=max(console.width, whole)).print(table)
    for line in lines(cells):
        console.print(line, markup=False)


def main(plan: Callable[[str], None] | None = None) -> None:
    """`plan` looks for what the cells of a sweep need, and keeps what is missing."""
    use_safe_output()
    parser = argparse.ArgumentParser(prog="python -m kedit.status", description=__doc__)
    parser.add_argument("sweep", nargs="?", help=f"a sweep's name; without it all below {runs()}/")
    parser.add_argument("--check", action="store_true", help="look again for the files and models that cells need")
    parser.add_argument("--prune", type=float, metavar="DAYS", help="list what the cache holds unused for so long")
    parser.add_argument("--yes", action="store_true", help="with --prune: delete it")
    given = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    if given.prune is not None:
        try:
            for line in prune(given.prune, really=given.yes):
                console.print(line, markup=False)
        except InputError as error:
            sys.exit(str(error))
        return
    if plan and given.sweep and (given.check or not look(runs() / given.sweep)) and sweep_exists(given.sweep):
        plan(given.sweep)
    sweeps = [runs() / given.sweep] if given.sweep else [path for path in sorted(runs().glob("*")) if path.is_dir()]
    seen = {sweep: look(sweep) for sweep in sweeps}
    cells = [cell for found in seen.values() for cell in found]
    if not cells:
        sys.exit(str(InputError(f"{runs() / (given.sweep or '')}: no cell there; give a sweep that has run")))
    for sweep, found in seen.items():
        if found:
            show(sweep, found)
    console.print(contents(), markup=False)
    sys.exit(code(cells))


if __name__ == "__main__":
    main()
