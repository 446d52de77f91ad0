"""A process that runs one cell after another, and is replaced when it dies."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

from kedit.common.progress import hide_progress


class WorkerDied(Exception):
    """The process ended, or was stopped, before its cell did; or the GPU it used is of no more use to it."""


class Worker:
    """`devices`: CUDA_VISIBLE_DEVICES of the process, which is started with its first cell."""

    def __init__(self, devices: str, number: int) -> None:
        self.devices, self.name = devices, f"GPU {devices}" if devices else f"worker {number}"
        self._pool: ProcessPoolExecutor | None = None

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` returns there. Raises WorkerDied; the next call starts a new process."""
        self._pool = self._pool or ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=_prepare, initargs=(self.devices, self.name)
        )
        try:
            return self._pool.submit(_run, function, *arguments).result()
        except (BrokenProcessPool, SystemExit, DeviceLost) as error:
            self.close()
            said = f"was stopped ({error})" if isinstance(error, SystemExit) else f"died ({error})"
            raise WorkerDied(f"the process of {self.name} {said}") from error

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


class DeviceLost(RuntimeError):
    """An error of a CUDA kernel: nothing that this process asks of its GPUs succeeds from here on."""


def _prepare(devices: str, name: str) -> None:
    """In the new process, before torch is imported."""
    os.environ["CUDA_VISIBLE_DEVICES"] = devices
    hide_progress()  # bars of several processes would overwrite each other
    logging.setLogRecordFactory(partial(_named, name))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher asks it to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _named(name: str, *arguments: Any, **more: Any) -> logging.LogRecord:
    """A line of the log, with the process that says it."""
    record = logging.LogRecord(*arguments, **more)
    record.msg = f"[{name}] ".replace("%", "%%" if record.args else "%") + str(record.msg)
    return record


def _end_with_parent() -> None:
    """When the launcher was killed: the running cell finishes its step and commits, then the process ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


def _run(function: Callable[..., Any], *arguments: Any) -> Any:
    result = function(*arguments)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise DeviceLost(str(error).splitlines()[0]) from error
    return result
