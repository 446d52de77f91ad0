"""hydra/launcher=gpus: the cells of a sweep over the GPUs of one machine.

Each worker is a process that sees only its own GPUs (CUDA_VISIBLE_DEVICES) and takes the next cell when it is free.
Without a GPU there are `workers` processes.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children
from queue import SimpleQueue
from typing import Any

from hydra.core.utils import JobReturn, filter_overrides

from kedit.common.errors import InputError
from kedit.loop.stop_signals import STOPS
from kedit.run.launchers.job import SweepLauncher, returned
from kedit.run.launchers.worker import Worker, WorkerDied

log = logging.getLogger(__name__)
VISIBLE = "CUDA_VISIBLE_DEVICES"


class Gpus(SweepLauncher):
    """`per_cell`: GPUs of one worker. `attempts`: how often a cell is started whose worker dies."""

    def __init__(self, *, per_cell: int, workers: int, attempts: int) -> None:
        self.per_cell, self.workers, self.attempts = per_cell, workers, attempts

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Returns when all cells have ended. A cell whose worker died is run again by the next free one."""
        jobs = self.waiting(job_overrides)
        if not jobs:
            return []
        devices = worker_devices(visible_gpus(), self.per_cell, self.workers)[: len(jobs)]
        workers = [Worker(device, number) for number, device in enumerate(devices, 1)]
        log.info("%d cells for %d workers: %s", len(jobs), len(workers), "; ".join(worker.name for worker in workers))
        pool = WorkerPool(workers, self.context().run, self.attempts)
        with signals_for(pool), ThreadPoolExecutor(len(devices)) as threads:
            ended = list(threads.map(pool.run, range(initial_job_idx, initial_job_idx + len(jobs)), jobs))
        if pool.stopped:
            raise SystemExit(128 + pool.stopped)
        return [result for result in ended if result is not None]


class WorkerPool:
    """Hands cells to the workers that are free. `stopped`: the signal that ended it, 0 without."""

    def __init__(self, workers: Sequence[Worker], run_cell: Callable[..., Any], attempts: int) -> None:
        self.run_cell, self.attempts, self.stopped = run_cell, attempts, 0
        self._workers, self._free = workers, SimpleQueue[Worker]()
        for worker in workers:
            self._free.put(worker)

    def run(self, number: int, overrides: Sequence[str]) -> JobReturn | None:
        """One cell, by the next worker that is free; None if it could not be brought to an end."""
        name = " ".join(filter_overrides(overrides))
        for attempt in range(1, self.attempts + 1):
            worker = self._free.get()
            try:
                if self.stopped:
                    return None
                return returned(overrides, worker.run(self.run_cell, number, overrides))
            except WorkerDied as died:
                if not self.stopped:
                    again = "its cell is started again" if attempt < self.attempts else "it is not started again"
                    log.warning("%s (attempt %d of %d of the cell %s); %s", died, attempt, self.attempts, name, again)
            finally:
                self._free.put(worker)
        return None

    def stop(self, number: int) -> None:
        """Let every worker finish its step and commit; no other cell is started."""
        self.stopped = self.stopped or number
        for process in active_children():
            if process.pid:
                os.kill(process.pid, signal.SIGTERM)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


@contextmanager
def signals_for(pool: WorkerPool) -> Iterator[None]:
    """Inside, a signal that asks this process to stop asks its workers to; afterwards the workers have ended."""
    listened = [number for number in (*STOPS, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda received, _: pool.stop(received)) for number in listened}
    try:
        yield
    finally:
        pool.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get(VISIBLE)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def worker_devices(gpus: Sequence[str], per_cell: int, workers: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each worker; without a GPU `workers` times "".

    Raises InputError if there are fewer GPUs than `per_cell`.
    """
    if not gpus:
        return [""] * workers
    if per_cell > len(gpus):
        raise InputError(f"gpus.per_cell={per_cell}: there are {len(gpus)} GPUs ({', '.join(gpus)}); give at most that")
    starts = range(0, len(gpus) - per_cell + 1, per_cell)
    return [",".join(gpus[start : start + per_cell]) for start in starts]
