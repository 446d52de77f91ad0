"""A run's journal in memory: what experiments in Python use, and the other processes of a parallel training."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedit.loop.checkpoint import intact_commit, load_checkpoint
from kedit.results.cell_files import SCRATCH, STATE, TRACES
from kedit.results.integrity import DamagedFile

if TYPE_CHECKING:
    from kedit.editors import Editor
    from kedit.lm import LM


class InMemoryJournal:
    """A journal that keeps everything in memory: for use from Python."""

    scratch: Path | None = None  # for an editor's use during one step; emptied when it is committed
    every_s = 60.0  # what a kill may lose

    def __init__(self) -> None:
        self.group_sizes: dict[int, int] = {}  # from this step on, so many episodes run side by side
        self.rows: list[dict[str, Any]] = []
        self.steps: list[dict[str, Any]] = []
        self.traces: list[dict[str, Any]] = []

    def resume(self, lm: "LM", editor: "Editor") -> int:
        """Bring model and editor to the last committed step and return it; -1 where nothing was committed."""
        return -1

    def write(self, step: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
        """Append one step and its rows."""
        self.steps.append(dict(step))
        self.rows.extend(map(dict, rows))

    def trace(self, records: Iterable[Mapping[str, Any]], file: str = TRACES) -> None:
        """Append what belongs to the step that is written next, to a file that few cells have."""
        self.traces.extend(map(dict, records if file == TRACES else ()))

    def keep_group_size(self, step: int, size: int) -> None:
        """From this step on, so many episodes run side by side."""
        self.group_sizes[step] = size

    def fitting(self) -> AbstractContextManager[None]:
        """Inside, the editor learns what it needs before the first edit: what it keeps of that it keeps itself."""
        return nullcontext()

    def unfinished_group(self, lm: "LM", editor: "Editor") -> AbstractContextManager[None]:
        """Inside, a group of episodes runs, of which nothing is written yet."""
        return nullcontext()

    def commit(self, lm: "LM", editor: "Editor", *, now: bool) -> None:
        """Make what was written so far the point where a killed run continues: `now`, or when it is time."""


class ReadOnlyJournal(InMemoryJournal):
    """The journal of the other processes of a parallel training: they continue where the cell does, and write
    nothing."""

    def __init__(self, directory: str | Path):
        super().__init__()
        self.directory = Path(directory)
        self.scratch = self.directory / STATE / SCRATCH

    def resume(self, lm: "LM", editor: "Editor") -> int:
        try:
            intact_commit(self.directory)
            return load_checkpoint(self.directory, lm, editor)
        except DamagedFile:
            return -1
