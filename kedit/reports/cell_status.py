"""The state of the cells of a sweep, as their directories and Slurm's queue show it."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

from kedit.common.paths import ROOT
from kedit.common.slurm import Queued, queued_cells
from kedit.common.text_files import read_text
from kedit.results.cell_files import (
    COMMIT,
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
from kedit.results.integrity import DamagedFile, read_json, read_record, read_records


@dataclass(frozen=True)
class Seen:
    """One cell of a sweep as its directory shows it, if there is one."""

    sweep: Path
    directory: str  # below the sweep: model/dataset/editor/setting-T/seed[/overrides]
    needs: tuple[str, ...] = ()  # what it did not find when it was last run or checked, a sentence each
    queued: tuple[str, Queued] | None = None  # its Slurm job, if that has not ended

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
        """done, running (a process holds it), queued (a Slurm job of it has not ended), failed, stopped (its process is
        gone), blocked (it lacks a file or a model) or missing (never started)."""
        status = read_text(self.place / STATUS)
        if is_finished(self.place):
            return "done"
        if status and is_running(self.place):
            return "running"
        if self.queued:
            return "queued"
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
    def _read(self) -> tuple[dict[str, Any], list[dict[str, Any]], str, dict[str, Any]]:
        """meta.json, the steps, which file is damaged, the record of the last commit."""
        meta: dict[str, Any] = {}
        commit: dict[str, Any] = {}
        try:
            meta = read_json(self.place, META) if (self.place / META).exists() else {}
            commit = read_record(self.place, COMMIT)
            return meta, read_records(self.place, STEPS), "", commit
        except DamagedFile as damaged:
            return meta, [], str(damaged), commit

    @property
    def edits(self) -> int:
        return sum(len(step.get("cases", ())) for step in self.steps)

    @property
    def wanted(self) -> int | None:
        """Edits that it will have made; unknown before it starts."""
        return self.meta.get("cases")

    @property
    def seconds(self) -> float:
        """Seconds of editing and testing so far."""
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
    def peak_mb(self) -> float:
        """Largest memory of its process, or of its GPUs; 0 if it is not known."""
        return float(self.meta.get("peak_memory_mb") or self._read[3].get("peak_memory_mb", 0))

    @property
    def whereabouts(self) -> str:
        """Where it runs or waits, as far as it is known: job, node, GPU."""
        machine, (job, queued) = self.meta.get("machine", {}), self.queued or ("", None)
        job = job or machine.get("job", "")
        if queued and queued.state != "RUNNING":
            return f"job {job} {queued.state.lower()} ({queued.reason})"
        node = queued.node if queued else machine.get("node", "")
        words = [f"job {job}" * bool(job), f"on {node}" * bool(node)]
        if gpus := machine.get("gpus"):
            words.append(f"GPU {gpus}{' (' + machine['gpu'] + ')' if 'gpu' in machine else ''}")
        return " ".join(filter(None, words))

    @property
    def error(self) -> str:
        return (read_text(self.place / ERROR) or "").strip().split("\n")[-1]


def look(sweep: Path) -> list[Seen]:
    """Every cell that was requested of a sweep or is found below it."""
    requested = {cell["directory"]: tuple(cell.get("missing", ())) for cell in requested_cells(sweep)}
    found = {str(path.relative_to(sweep)) for path in cell_directories(sweep, STATUS, ROWS)}
    cells = sorted(map(Path, {*requested, *found}), key=lambda cell: natural(cell.parts))
    queued = queued_cells(sweep)
    return [
        Seen(sweep, str(cell), requested.get(str(cell), ()), queued.get(str(cell))) for cell in cells if _is_cell(cell)
    ]


def _is_cell(directory: Path) -> bool:
    """model/dataset/editor/setting-T/seed[/overrides]."""
    return len(directory.parts) in (5, 6)


def sweep_exists(name: str) -> bool:
    """Whether sweeps/ has one of this name."""
    return (ROOT / "sweeps" / f"{name}.yaml").is_file()


def natural(parts: tuple[str, ...]) -> list[list[str | int]]:
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
