"""Signals that ask a run to stop: they are noted, so that it can finish its step and commit."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from kedit.common.terminal import leave_terminals, terminals

log = logging.getLogger(__name__)

STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)  # a scheduler's preemption; a closed terminal


class StopAtOnce(BaseException):
    """A signal came while something was made that is dropped when it is not finished."""


class StopSignals:
    """Between `listen` and `release`, `received` is the number of the signal that came, if one did."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._at_once = False
        self._handlers: dict[int, Any] = {}
        self._terminals = terminals()

    def listen(self) -> None:
        """Only the main thread can; what the process ignores (SIGHUP under nohup) it goes on ignoring."""
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._note) for number in heard}

    def _note(self, number: int, frame: object) -> None:
        self.received = number
        if number == signal.SIGHUP:
            leave_terminals(self._terminals)
        if self._at_once:
            self._at_once = False  # once: what is undone on the way out is not interrupted
            raise StopAtOnce

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises StopAtOnce, wherever the program is."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def release(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def stop(self, where: str) -> NoReturn:
        """`where` the run stops: "after step 7". The exit status is 128 + the signal's number."""
        number = self.received or 0
        log.warning("stopped by signal %d %s; the same command continues", number, where)
        raise SystemExit(128 + number)
