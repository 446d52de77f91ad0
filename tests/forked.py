"""kedit's command in a process that has nothing to import: forked from one that has loaded everything.

A test holds a `Forked`: the same command line, environment and folder as in a subprocess, seconds earlier at work.
Run as a program, this file is the process that forks: it reads requests from one pipe and answers on another.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


class Forked:
    """A running `python PROGRAM ARGUMENTS`, PROGRAM a module's name or a file; what it says goes to files."""

    def __init__(self, program: str, arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path, says: Path):
        self._out, self._err = says.with_suffix(".out"), says.with_suffix(".err")
        where = {"env": dict(env), "cwd": str(cwd), "out": str(self._out), "err": str(self._err)}
        self.pid: int = _server().ask(start=[program, *arguments], **where)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status: None while it runs, minus the signal that killed it."""
        if self.returncode is None:
            self.returncode = _server().ask(poll=self.pid)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """Raises TimeoutError if it still runs after so many seconds."""
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"process {self.pid} still runs; it said: {self._out.read_text(encoding='utf-8')}")
            time.sleep(0.02)
        return status

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it wrote to stdout and to stderr until it ended."""
        self.wait(timeout)
        return self._out.read_text(encoding="utf-8"), self._err.read_text(encoding="utf-8")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class _Server:
    """The process that forks, as the tests see it."""

    def __init__(self) -> None:
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [TESTS.parent, TESTS, TESTS / "plugins"]))}
        command = [sys.executable, __file__, str(requests), str(answers)]
        self._process = subprocess.Popen(command, env=env, pass_fds=(requests, answers))
        os.close(requests)
        os.close(answers)

    def ask(self, **request: Any) -> Any:
        os.write(self._requests, json.dumps(request).encode() + b"\n")
        with open(self._answers, encoding="utf-8", closefd=False) as answers:
            return json.loads(answers.readline())


@cache
def _server() -> _Server:
    """One for all tests of this process; it ends when this process does."""
    return _Server()


# --- the process that forks ------------------------------------------------------------------------------------------


def serve(requests: int, answers: int) -> dict[str, Any] | None:
    """Answer requests. Returns in each forked child, with what it is to do, and when there are no more (None)."""
    with open(requests, encoding="utf-8", closefd=False) as lines:
        for line in lines:
            request = json.loads(line)
            if "poll" in request:
                pid, status = os.waitpid(request["poll"], os.WNOHANG)
                answer = os.waitstatus_to_exitcode(status) if pid else None
            elif not (answer := os.fork()):
                return request
            os.write(answers, json.dumps(answer).encode() + b"\n")
    return None


def become(request: Mapping[str, Any]) -> None:
    """This process has that environment, folder, output and command line from here on, and runs the program."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also if the tests run in the background
    program, *arguments = request["start"]
    sys.argv = [program, *arguments]
    sys.path[:0] = [request["cwd"], *filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep))]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def load_everything() -> None:
    """All that a small run imports, so that no child does."""
    import matplotlib.pyplot  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import kedit.editors.finetune.epochs
    import kedit.editors.finetune.per_edit
    import kedit.loop.provenance
    import kedit.losses.cross_entropy
    import kedit.losses.dpo
    import kedit.losses.kdpo
    import kedit.reports.dashboard
    import kedit.reports.plot
    import kedit.reports.table.show
    import kedit.run.main  # noqa: F401
    from kedit.evaluation.metrics.free_text import ngram_entropy

    torch.set_num_threads(1)
    ngram_entropy("this loads nltk")


if __name__ == "__main__":
    load_everything()
    if work := serve(int(sys.argv[1]), int(sys.argv[2])):
        become(work)
