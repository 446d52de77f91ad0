"""Experiment tracking. wandb is never allowed to stop a run or to lose a number: rows are on disk first."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

log = logging.getLogger(__name__)


class Tracker:
    """Tracks nothing: the interface."""

    def start(self, *, directory: Path, name: str, group: str, config: Mapping[str, Any]) -> None:
        """Before the first step."""

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """The metrics of one step (the run's step number, counted from 1; 0 is the unedited model)."""

    def finish(self, table: pd.DataFrame) -> None:
        """After the last step, with the cell's table."""


class Wandb(Tracker):
    """One wandb run for each cell, in the cell's directory; its id is made from the cell's name, so a continued run
    is the same run.

    `mode`: offline (default; `wandb sync <cell>/wandb/*` uploads later), online, disabled. Anything that goes wrong is
    said once, and the run goes on without.
    """

    def __init__(
        self, *, project: str = "kedit", mode: str = "offline", init_timeout: float = 30.0, finish_timeout: float = 60.0
    ):
        self.project, self.mode, self.init_timeout, self.finish_timeout = project, mode, init_timeout, finish_timeout
        self._run: Any = None

    def start(self, *, directory: Path, name: str, group: str, config: Mapping[str, Any]) -> None:
        for empty in directory.glob("wandb/*/*.wandb"):
            if not empty.stat().st_size:  # left by a killed run; it would make `wandb sync` of this run fail as a whole
                empty.unlink()
        for mode in dict.fromkeys([self.mode, "offline"]):
            try:
                self._run = self._start(mode, directory, name, group, config)
                return
            except Exception as error:
                log.warning("wandb (%s) could not start: %s", mode, error)

    def _start(self, mode: str, directory: Path, name: str, group: str, config: Mapping[str, Any]) -> Any:
        import wandb

        settings = wandb.Settings(
            console="off",
            silent=True,
            x_disable_stats=True,
            x_transaction_log_flush_interval=1.0,
            init_timeout=self.init_timeout,
            finish_timeout=self.finish_timeout,
        )
        return wandb.init(
            project=self.project,
            dir=directory,
            id=hashlib.sha256(f"{group}/{name}".encode()).hexdigest()[:16],
            name=name,
            group=group,
            config=dict(config),
            mode=mode,  # type: ignore[arg-type]
            resume="allow",
            settings=settings,
        )

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        self._try(lambda: self._run.log(dict(metrics), step=step))

    def finish(self, table: pd.DataFrame) -> None:
        def last() -> None:
            import wandb

            self._run.log({"table": wandb.Table(dataframe=table)})
            self._run.finish()

        self._try(last)
        self._run = None

    def _try(self, call: Any) -> None:
        if self._run is None:
            return
        try:
            call()
        except Exception as error:
            log.warning("wandb stopped: %s; the rows on disk are complete", error)
            self._run = None
