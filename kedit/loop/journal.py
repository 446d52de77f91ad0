"""Rows, steps and state of one cell on disk: a run killed anywhere continues to the same result.

The files are listed in kedit/results/cell_files.py.
"""

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout

from kedit.common.dotted import dotted
from kedit.common.errors import InputError
from kedit.common.text_files import read_text, write_text
from kedit.loop.checkpoint import COMMIT, load_checkpoint, save_checkpoint
from kedit.results.cell_files import CONFIG, LOCK, META, ROWS, SCRATCH, STATE, STATUS, STEPS, TRACES, is_finished
from kedit.results.schema import SCHEMA

if TYPE_CHECKING:
    from kedit.editors import Editor
    from kedit.lm import LM

log = logging.getLogger(__name__)

# parts of meta.json that a continued run must share with its beginning
FIXED = ("data", "files", "model_is", "versions")


class InMemoryJournal:
    """A journal that keeps everything in memory: for use from Python."""

    scratch: Path | None = None  # for an editor's use during one step; emptied when it is committed

    def __init__(self) -> None:
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

    def trace(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append what was heard during the step that is written next."""
        self.traces.extend(map(dict, records))

    def commit(self, lm: "LM", editor: "Editor", *, now: bool) -> None:
        """Make what was written so far the point where a killed run continues: `now`, or when it is time."""


class ReadOnlyJournal(InMemoryJournal):
    """What the other processes of a parallel training have: they continue where the cell does, and write nothing."""

    def __init__(self, directory: str | Path):
        super().__init__()
        self.state = Path(directory) / STATE
        self.scratch = self.state / SCRATCH

    def resume(self, lm: "LM", editor: "Editor") -> int:
        return load_checkpoint(self.state, lm, editor)


class Journal(InMemoryJournal):
    """A cell's directory: at most one run at a time, and none with another config.

    SIGTERM and SIGUSR1 (a scheduler's preemption) finish the step, commit, and exit with 128 + the signal's number.
    """

    def __init__(self, directory: str | Path, config: str, *, every_s: float = 60.0, keep_state: bool = False):
        super().__init__()
        self.directory, self.config = Path(directory), config
        self.every_s, self.keep_state = every_s, keep_state
        self._files: dict[str, IO[str]] = {}
        self._last_commit = time.monotonic()
        self._handlers: dict[int, Any] = {}
        self._stop: int | None = None  # the signal that asked the run to stop

    @property
    def scratch(self) -> Path:  # type: ignore[override]
        return self.directory / STATE / SCRATCH

    @property
    def finished(self) -> bool:
        return is_finished(self.directory)

    def check(self) -> None:
        """Raises InputError where the directory holds a run with another config."""
        held = read_text(self.directory / CONFIG)
        if held is not None and held != self.config:
            raise InputError(
                f"{self.directory} holds a run with another config ({_difference(held, self.config)}); "
                "remove the directory, or name the difference on the command line"
            )

    def __enter__(self) -> "Journal":
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.directory / LOCK, blocking=False)
            self._lock.acquire()
        except Timeout as error:
            raise InputError(f"{self.directory}: another run is at work here; wait for it, or stop it") from error
        except OSError as error:
            wrong = f"{self.directory} cannot be made ({error.strerror})"
            raise InputError(f"{wrong}; set KEDIT_RUNS to a writable folder") from error
        try:
            self.check()
            if not (self.directory / CONFIG).exists():
                write_text(self.directory / CONFIG, self.config)
            if not self.finished:
                write_text(self.directory / STATUS, "running")
        except BaseException:
            self._lock.release()
            raise
        if threading.current_thread() is threading.main_thread():
            self._handlers = {n: signal.signal(n, self._ask_to_stop) for n in (signal.SIGTERM, signal.SIGUSR1)}
        return self

    def _ask_to_stop(self, number: int, frame: object) -> None:
        self._stop = number

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for file in self._files.values():
            file.close()
        self._lock.release()

    # --- while running -----------------------------------------------------------------------------------------------

    def resume(self, lm: "LM", editor: "Editor") -> int:
        text = read_text(self.directory / STATE / COMMIT)
        done = json.loads(text) if text else {ROWS: 0, STEPS: 0}
        for name, kept in ((ROWS, self.rows), (STEPS, self.steps)):
            with open(self.directory / name, "ab") as whole:
                whole.truncate(done[name])  # what was written after the last commit is done again
            with open(self.directory / name, encoding="utf-8") as file:
                kept += map(json.loads, file)
            self._open(name)
        if (self.directory / TRACES).exists():
            os.truncate(self.directory / TRACES, done.get(TRACES, 0))
        return load_checkpoint(self.directory / STATE, lm, editor)

    def write(self, step: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
        before = len(self.rows)
        super().write(step, rows)
        self._append(ROWS, self.rows[before:])
        self._append(STEPS, self.steps[-1:])

    def trace(self, records: Iterable[Mapping[str, Any]]) -> None:
        records = list(records)
        if records:  # few cells have any
            if TRACES not in self._files:
                self._open(TRACES)
            self._append(TRACES, records)

    def _open(self, name: str) -> None:
        self._files[name] = open(self.directory / name, "a", encoding="utf-8")  # noqa: SIM115 (see __exit__)

    def _append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        self._files[name].writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        self._files[name].flush()

    def commit(self, lm: "LM", editor: "Editor", *, now: bool) -> None:
        if not now and self._stop is None and time.monotonic() - self._last_commit < self.every_s:
            return
        sizes = {name: _sync(file) for name, file in self._files.items()}
        step = self.steps[-1]["step"]
        new = self.directory / STATE / str(step)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        save_checkpoint(new, lm, editor)
        write_text(self.directory / STATE / COMMIT, json.dumps({"step": step, **sizes}))
        for old in (self.directory / STATE).iterdir():
            if old.is_dir() and old != new:
                shutil.rmtree(old)
        self._last_commit = time.monotonic()
        if self._stop is not None:
            log.warning("stopped by signal %d after step %d; the same command continues", self._stop, step)
            raise SystemExit(128 + self._stop)

    def describe(self, meta: Mapping[str, Any]) -> None:
        """Write (again) what the cell is: meta.json. Raises InputError where another data, model or versions began."""
        held = json.loads(read_text(self.directory / META) or "{}")
        for part in FIXED:
            if part in held and held[part] != json.loads(json.dumps(meta[part])):
                raise InputError(
                    f"{self.directory} was begun with another {part} ({held[part]}, now {meta[part]}); "
                    "remove the directory to begin again, or bring the first one back"
                )
        text = json.dumps({"schema": SCHEMA, **meta}, indent=1, ensure_ascii=False)
        write_text(self.directory / META, text)

    def finish(self) -> None:
        """The last commit was the last step: nothing will be added."""
        write_text(self.directory / STATUS, "finished")
        if not self.keep_state:
            shutil.rmtree(self.directory / STATE, ignore_errors=True)


def _sync(file: IO[str]) -> int:
    """Everything written is on disk; returns the file's size."""
    file.flush()
    os.fsync(file.fileno())
    return os.fstat(file.fileno()).st_size


def _difference(held: str, new: str) -> str:
    """The first option that differs."""
    there, now = (dict(dotted(yaml.safe_load(text))) for text in (held, new))
    none = "not there"
    name = next((name for name in there | now if there.get(name, none) != now.get(name, none)), "its form")
    return f"{name}: there {there.get(name, none)}, now {now.get(name, none)}"
