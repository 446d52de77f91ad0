"""Signals that ask a run to stop: they are noted, so that it can finish its step and commit."""

import logging
import signal
import threading
from typing import Any, NoReturn

from kedit.common.terminal import leave_terminals, terminals

log = logging.getLogger(__name__)

STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # a scheduler's preemption; a terminal that was closed


class StopSignals:
    """Between `listen` and `release`, `received` is the number of the signal that came, if one did."""

    def __init__(self) -> None:
        self.received: int | None = None
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

    def release(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def stop(self, step: int) -> NoReturn:
        """After this step. The exit status is 128 + the signal's number."""
        number = self.received or 0
        log.warning("stopped by signal %d after step %d; the same command continues", number, step)
        raise SystemExit(128 + number)
