"""Rows, steps and state of one cell on disk: a run killed anywhere continues to the same result.

The files are listed in kedit/results/cell_files.py.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout

from kedit.common.dotted import dotted
from kedit.common.errors import InputError
from kedit.common.text_files import read_text, write_text
from kedit.lm.peak_memory import peak_memory_mb
from kedit.loop.appended_file import AppendedFile
from kedit.loop.checkpoint import intact_commit, load_checkpoint, save_checkpoint
from kedit.loop.in_memory_journal import InMemoryJournal
from kedit.loop.stop_signals import StopAtOnce, StopSignals
from kedit.results.cell_files import (
    BENCHMARKS,
    COMMIT,
    CONFIG,
    LOCK,
    MANIFEST,
    META,
    ROWS,
    SCRATCH,
    STATE,
    STATUS,
    STEPS,
    TRACES,
    is_finished,
)
from kedit.results.integrity import (
    DamagedFile,
    check_files,
    fingerprint,
    read_json,
    read_record,
    read_records,
    write_record,
)
from kedit.results.schema import SCHEMA

if TYPE_CHECKING:
    from kedit.editors import Editor
    from kedit.lm import LM

log = logging.getLogger(__name__)

# parts of meta.json that a continued run must share with its beginning
FIXED = ("data", "files", "measures", "model_is", "versions")
LOOKS_S = 0.5  # longer than a look of kedit.status, which holds the lock for a moment


class Journal(InMemoryJournal):
    """A cell's directory: at most one run at a time, and none with another config.

    SIGTERM, SIGUSR1, SIGUSR2 and SIGHUP finish the step, commit, and exit with 128 + the signal's number; an unfinished
    group of episodes is dropped at once.
    """

    def __init__(self, directory: str | Path, config: str, *, every_s: float = 60.0, keep_state: bool = False):
        super().__init__()
        self.directory, self.config = Path(directory), config
        self.every_s, self.keep_state = every_s, keep_state
        self._files: dict[str, AppendedFile] = {}
        self._last_commit = time.monotonic()
        self._signals = StopSignals()
        self._meta: Mapping[str, Any] = {}
        self._same: str | None = None  # hash of the parts of meta.json that stay the same

    @property
    def scratch(self) -> Path:  # type: ignore[override]
        return self.directory / STATE / SCRATCH

    @property
    def finished(self) -> bool:
        return is_finished(self.directory)

    def check(self) -> None:
        """Raises InputError if the directory holds a run with another config, or a finished one that is damaged."""
        self._check_config()
        if (self.directory / MANIFEST).exists():  # it is finished, whatever its status says
            if read_text(self.directory / CONFIG) != self.config:
                write_text(self.directory / CONFIG, self.config)
            check_files(self.directory)
            if not self.finished:
                write_text(self.directory / STATUS, "finished")

    def _check_config(self) -> None:
        """A config that cannot be read is written again if it is known to have been this one, or if nothing was
        committed with it."""
        held = read_text(self.directory / CONFIG)
        if held == self.config:
            return
        if held is not None and (difference := _difference(held, self.config)):
            raise InputError(
                f"{self.directory / CONFIG}: the directory holds a run with another config ({difference}); "
                "remove the directory, or name the difference on the command line"
            )
        known = _recorded(self.directory).get("config")
        if known not in (None, _hash(self.config)):
            raise DamagedFile(self.directory, CONFIG, "and it was another config than this command's")
        if held is not None:
            log.warning("%s is damaged; it is written again", self.directory / CONFIG)

    def __enter__(self) -> "Journal":
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.directory / LOCK)
            self._lock.acquire(timeout=LOOKS_S)
        except Timeout as error:
            raise InputError(f"{self.directory}: another run is at work here; wait for it, or stop it") from error
        except OSError as error:
            wrong = f"{self.directory} cannot be made ({error.strerror})"
            raise InputError(f"{wrong}; set KEDIT_RUNS to a writable folder") from error
        try:
            self.check()
            if read_text(self.directory / CONFIG) != self.config:
                write_text(self.directory / CONFIG, self.config)
            if not self.finished:
                write_text(self.directory / STATUS, "running")
        except BaseException:
            self._lock.release()
            raise
        self._signals.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._signals.release()
        for file in self._files.values():
            with suppress(OSError):  # a full disk was reported before
                file.close()
        self._lock.release()

    # --- while running -----------------------------------------------------------------------------------------------

    def resume(self, lm: "LM", editor: "Editor") -> int:
        """If what was committed is damaged, every step is done again, to the same rows."""
        try:
            files = intact_commit(self.directory).get("files", {})
            step = load_checkpoint(self.directory, lm, editor)
        except DamagedFile as damaged:
            log.warning("%s is damaged (%s); every step is done again", damaged.file, damaged.what)
            shutil.rmtree(self.directory / STATE)
            files, step = {}, -1
        for name in (ROWS, STEPS, TRACES, BENCHMARKS):
            if name in files or name in (ROWS, STEPS) or (self.directory / name).exists():
                self._open(name, files[name]["size"] if name in files else 0)
        self.rows += read_records(self.directory, ROWS)
        self.steps += read_records(self.directory, STEPS)
        return step

    def write(self, step: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
        before = len(self.rows)
        super().write(step, rows)
        self._files[ROWS].append(self.rows[before:])
        self._files[STEPS].append(self.steps[-1:])

    def trace(self, records: Iterable[Mapping[str, Any]], file: str = TRACES) -> None:
        records = list(records)
        if records:  # few cells have any
            if file not in self._files:
                self._open(file, 0)
            self._files[file].append(records)

    def _open(self, name: str, size: int) -> None:
        self._files[name] = AppendedFile(self.directory / name, size)

    @contextmanager
    def fitting(self) -> Iterator[None]:
        try:
            with self._signals.at_once():
                yield
        except StopAtOnce:
            self._signals.stop("before the first edit")

    @contextmanager
    def unfinished_group(self, lm: "LM", editor: "Editor") -> Iterator[None]:
        try:
            with self._signals.at_once():
                yield
        except StopAtOnce:
            self.commit(lm, editor, now=True)

    def commit(self, lm: "LM", editor: "Editor", *, now: bool) -> None:
        if not now and self._signals.received is None and time.monotonic() - self._last_commit < self.every_s:
            return
        files = {name: file.synced() for name, file in self._files.items()}
        step, home = self.steps[-1]["step"], self.directory / STATE
        shutil.rmtree(home / str(step), ignore_errors=True)
        files |= save_checkpoint(self.directory, step, lm, editor)
        record = {"step": step, "config": _hash(self.config), "same": self._same, "files": files}
        record["peak_memory_mb"] = peak_memory_mb()  # for `python -m kedit.status`
        write_record(self.directory, COMMIT, record)
        for old in home.iterdir():
            if old.is_dir() and old.name != str(step):
                shutil.rmtree(old)
        self._last_commit = time.monotonic()
        if self._signals.received is not None:
            self._signals.stop(f"after step {step}")

    def describe(self, meta: Mapping[str, Any]) -> None:
        """Write (again) what the cell is: meta.json. Raises InputError if it was started with other data, another model
        or other versions."""
        fixed = {part: json.loads(json.dumps(meta[part])) for part in FIXED if part in meta}
        self._same = _hash(json.dumps(fixed, sort_keys=True))
        self.group_sizes |= self._held_group_sizes()
        known = _recorded(self.directory).get("same")
        if known != self._same:
            self._compare(fixed, known)
        self._meta = meta
        self._write_meta()

    def _write_meta(self) -> None:
        sizes = {"parallel": self.group_sizes} if self.group_sizes else {}
        text = json.dumps({"schema": SCHEMA, **self._meta, **sizes}, indent=1, ensure_ascii=False)
        write_text(self.directory / META, text)

    def keep_group_size(self, step: int, size: int) -> None:
        super().keep_group_size(step, size)
        self._write_meta()

    def _held_group_sizes(self) -> dict[int, int]:
        """What an earlier attempt decided."""
        with suppress(DamagedFile):
            held = read_json(self.directory, META).get("parallel", {}) if (self.directory / META).exists() else {}
            return {int(step): int(size) for step, size in held.items()}
        return {}

    def _compare(self, fixed: Mapping[str, Any], known: str | None) -> None:
        """With what meta.json says. If that cannot be read, only with the hash that a commit has of it."""
        try:
            held = read_json(self.directory, META) if (self.directory / META).exists() else {}
        except DamagedFile:
            if known:
                raise
            held = {}
        for part, value in fixed.items():
            if part in held and held[part] != value:
                raise InputError(
                    f"{self.directory} was started with another {part} ({held[part]}, now {value}); "
                    "remove the directory to start again, or bring the first one back"
                )
        if known:
            raise DamagedFile(self.directory, META, f"and the run was started with other {', '.join(FIXED)}")

    def finish(self) -> None:
        """The last commit was the last step: nothing will be added."""
        files = {name: file.synced() for name, file in self._files.items()}
        files |= {name: fingerprint(self.directory / name) for name in (CONFIG, META)}
        write_record(self.directory, MANIFEST, {"config": _hash(self.config), "files": files})
        write_text(self.directory / STATUS, "finished")
        if not self.keep_state:
            shutil.rmtree(self.directory / STATE, ignore_errors=True)


def _recorded(cell: Path) -> dict[str, Any]:
    """What was recorded when the cell finished, else with its last commit; nothing if that is damaged."""
    try:
        return read_record(cell, MANIFEST) or read_record(cell, COMMIT)
    except DamagedFile:
        return {}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _difference(held: str, new: str) -> str:
    """The first option that differs; empty if `held` is no config."""
    try:
        there = yaml.safe_load(held)
    except yaml.YAMLError:
        return ""
    if not isinstance(there, dict):
        return ""
    there, now, none = dict(dotted(there)), dict(dotted(yaml.safe_load(new))), "not there"
    name = next((name for name in there | now if there.get(name, none) != now.get(name, none)), "its form")
    return f"{name}: there {there.get(name, none)}, now {now.get(name, none)}"
