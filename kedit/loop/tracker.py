"""Experiment tracking. wandb is never allowed to stop a run or to lose a number: rows are on disk first."""

import hashlib
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args
from urllib.parse import urlsplit
from urllib.request import getproxies

from kedit.common.options import Name, Positive

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Mode = Literal["offline", "online", "disabled"]
TABLE_ROWS = 10_000  # that wandb shows of one table
EDITS = "edits_made"  # by this run so far, restored ones too: what a history is drawn over
METRICS: Mapping[str, Mapping[str, Any]] = {  # history -> over what wandb draws it, what the summary has
    EDITS: {"hidden": True},
    "*": {"step_metric": EDITS},
    "edit/*": {"step_metric": EDITS, "summary": "mean"},
    "test/*": {"step_metric": EDITS, "summary": "last"},
}
YES = ("1", "true", "t", "yes", "y", "on")  # the values of WANDB_DISABLED that wandb takes for yes


@dataclass(frozen=True)
class Report:
    """What is known when a cell, or a whole sweep, is through."""

    summary: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, "pd.DataFrame"] = field(default_factory=dict)
    pictures: Mapping[str, Path] = field(default_factory=dict)


class Tracker:
    """Tracks nothing: the interface."""

    def start(
        self,
        *,
        directory: Path,
        name: str,
        group: str,
        config: Mapping[str, Any],
        tags: Sequence[str] = (),
        alone: bool = True,
    ) -> None:
        """Before the first step. `alone`: this command runs one cell, not those of a grid."""

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """The metrics of one step (the run's step number, counted from 1; 0 is the unedited model)."""

    def training(self, progress: Mapping[str, float | int]) -> None:
        """How far a training in the editor's `fit` has come, before the first step."""

    def finish(self, report: Report) -> None:
        """After the last step."""


class Wandb(Tracker):
    """One wandb run for each cell, in the cell's directory; its id is made from the cell's name, so a continued run
    is the same run. WANDB_RUN_ID (an agent's, or given by hand) is the id of a cell that runs alone; of a grid's cells
    each has an id made of it and the cell's name.

    `mode`: offline (default; `python -m kedit.sync` uploads later), online, disabled; WANDB_MODE and WANDB_DISABLED
    come before it. Anything that goes wrong is said
    once, and the run goes on without; a server that does not answer costs `init_timeout` seconds, and once only: this
    process stays offline then. One that dies costs at most `finish_timeout` at the end.
    """

    lost: ClassVar[bool] = False  # this process has met a server that does not answer

    def __init__(
        self,
        *,
        project: Name = "kedit",
        mode: Mode = "offline",
        init_timeout: Positive = 30.0,
        finish_timeout: Positive = 60.0,
    ):
        self.project, self.mode, self.init_timeout, self.finish_timeout = project, mode, init_timeout, finish_timeout
        self.directory = Path()
        self._identity: dict[str, Any] = {}
        self._run: Any = None
        self._online = False
        self._step: int | None = None

    def start(
        self,
        *,
        directory: Path,
        name: str,
        group: str,
        config: Mapping[str, Any],
        tags: Sequence[str] = (),
        alone: bool = True,
    ) -> None:
        self.mode = mode_of(os.environ, self.mode)
        if self.mode == "disabled":
            return
        self.directory = directory
        for empty in directory.glob("wandb/*/*.wandb"):
            if not empty.stat().st_size:  # left by a killed run; it would make `wandb sync` of this run fail as a whole
                empty.unlink()
        self._identity = {"name": name, "group": group, "config": dict(config), "tags": [tag[:64] for tag in tags]}
        self._identity["id"] = run_id(f"{group}/{name}", os.environ.get("WANDB_RUN_ID", ""), alone)
        for mode in dict.fromkeys([self._possible(), "offline"]):
            try:
                self._run, self._online = self._start(mode, self._identity), mode == "online"
                return
            except Exception as error:
                log.warning("wandb (%s) could not start: %s", mode, error)
                Wandb.lost = Wandb.lost or mode == "online"

    def _possible(self) -> str:
        """The wanted mode, or offline where no server would answer."""
        if self.mode != "online":
            return self.mode
        if not Wandb.lost and (url := unreachable()):
            log.warning("wandb: no server answers at %s; offline: python -m kedit.sync uploads it later", url)
            Wandb.lost = True
        return "offline" if Wandb.lost else "online"

    def _start(self, mode: str, identity: Mapping[str, Any]) -> Any:
        import wandb

        settings = wandb.Settings(
            console="off",
            silent=True,
            x_disable_stats=True,
            x_transaction_log_flush_interval=1.0,
            init_timeout=self.init_timeout,
            login_timeout=self.init_timeout,
            finish_timeout=self.finish_timeout,
            finish_timeout_raises=True,
            reinit="create_new",  # never the run of an earlier cell that a lost server kept open
        )
        run = wandb.init(
            **identity,
            project=self.project,
            dir=self.directory,
            mode=mode,  # type: ignore[arg-type]
            resume="allow",
            settings=settings,
        )
        for name, how in METRICS.items():
            run.define_metric(name, **how)
        return run

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        self._step = step
        self._try(lambda: self._run.log(dict(metrics), step=step))

    def training(self, progress: Mapping[str, float | int]) -> None:
        self._try(lambda: self._run.summary.update(dict(progress)))

    def finish(self, report: Report) -> None:
        self._try(lambda: self._finish(report))
        self._run = None

    def _finish(self, report: Report) -> None:
        """What a lost server cannot be told is kept in an offline part of the same run."""
        if self._online and (url := unreachable()):
            self._continue_offline(f"no server answers at {url}")
        try:
            self._tell(report)
        except Exception as error:
            if not self._online:
                raise
            self._continue_offline(str(error))
            self._tell(report)
        self._close()

    def _continue_offline(self, why: str) -> None:
        self._close()
        log.warning("wandb: %s; the rest of %s is kept offline", why, self.directory)
        self._run, self._online = self._start("offline", self._identity), False

    def _tell(self, report: Report) -> None:
        import wandb

        media: dict[str, Any] = {name: wandb.Image(str(path)) for name, path in report.pictures.items()}
        for name, frame in report.tables.items():
            media |= {part: _table(rows) for part, rows in _parts(name, frame)}
        self._run.log(media, step=self._step)
        self._run.summary.update(dict(report.summary))

    def _close(self) -> None:
        try:
            self._run.finish()
        except TimeoutError:
            log.warning("wandb: the server did not take everything; python -m kedit.sync %s does it", self.directory)
            Wandb.lost = True
            return
        if self._online:  # the mark that `wandb sync` leaves
            Path(f"{self._run.settings.sync_file}.synced").touch()

    def _try(self, call: Callable[[], None]) -> None:
        if self._run is None:
            return
        try:
            call()
        except Exception as error:
            log.warning("wandb stopped: %s; the rows on disk are complete", error)
            self._run = None


def mode_of(environment: Mapping[str, str], mode: Mode) -> Mode:
    """What WANDB_DISABLED and WANDB_MODE say, else `mode`."""
    if environment.get("WANDB_DISABLED", "").lower() in YES:
        return "disabled"
    given = environment.get("WANDB_MODE", "").lower()
    given = {"dryrun": "offline", "run": "online", "shared": "online"}.get(given, given)  # wandb's other words
    if given and given not in get_args(Mode):
        log.warning("WANDB_MODE=%s: choose from %s; tracker.mode=%s it is", given, ", ".join(get_args(Mode)), mode)
    return given if given in get_args(Mode) else mode  # type: ignore[return-value]


def run_id(name: str, given: str, alone: bool) -> str:
    """The id of a cell's run: the one that was given for it, else one that follows from its name (and, in a grid, from
    the one that was given for all)."""
    if given and alone:
        return given
    return hashlib.sha256(f"{given}/{name}".removeprefix("/").encode()).hexdigest()[:16]


def _table(frame: "pd.DataFrame") -> Any:
    """A wandb.Table of columns of numbers and of texts. Its values are given at once: wandb would check every row's
    types, which takes a second for some thousand."""
    from pandas.api.types import is_numeric_dtype

    types = [float if is_numeric_dtype(column) else str for _, column in frame.items()]
    table = _table_of_json()(columns=list(map(str, frame)), data=[], dtype=types, optional=True)
    table.data = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    return table


@cache
def _table_of_json() -> type:
    """A wandb.Table of numbers, texts and None. wandb looks at each value for one that JSON does not have; here there
    is none."""
    import wandb

    class TableOfJson(wandb.Table):
        def to_json(self, run_or_artifact: Any) -> dict[str, Any]:
            rows, self.data = self.data, []
            try:
                made = super().to_json(run_or_artifact)
            finally:
                self.data = rows
            return made | {"nrows": len(rows)} | ({"data": rows} if "data" in made else {})

    return TableOfJson


def _parts(name: str, frame: "pd.DataFrame") -> list[tuple[str, "pd.DataFrame"]]:
    """rows, rows_2, ...: what wandb shows of one table, nothing is cut off."""
    starts = range(0, max(1, len(frame)), TABLE_ROWS)
    return [(name if not at else f"{name}_{at // TABLE_ROWS + 1}", frame[at : at + TABLE_ROWS]) for at in starts]


def unreachable(timeout: float = 5.0) -> str | None:
    """The wandb server's address, where nothing answers there; None where something does or a proxy stands between."""
    import wandb

    url = urlsplit(wandb.setup().settings.base_url)
    if getproxies().get(url.scheme):
        return None
    try:
        socket.create_connection(
            (url.hostname or "", url.port or (443 if url.scheme == "https" else 80)), timeout
        ).close()
    except OSError:
        return url.geturl()
    return None
