"""Ctrl-C, a hangup, a full disk, a second process: one line says it, and the same command ends with the same rows."""

import os
import pty
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from conftest import TESTS
from filelock import FileLock
from forked import Forked

from kedit.loop.journal import Journal
from kedit.reports.cell_status import look
from kedit.results.cell_files import cell_directories

TINY = ["model.people=20", "model.steps=2", "model.width=32", "model.mlp=32", "eval.fluency_tokens=0"]
RUN = [*TINY, "T=8", "editor=kdpo", "tracker=none", "commit_every_s=0", "keep_state=true"]
Start = Callable[..., Forked]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    numbers = count()

    def run(folder: str, *overrides: str, program: tuple[str, ...] = ("kedit.run",)) -> Forked:
        env = {**os.environ, "KEDIT_RUNS": str(tmp_path / folder)}
        arguments = [*program[1:], *overrides, *RUN]
        return Forked(program[0], arguments, env=env, cwd=tmp_path, says=tmp_path / f"said{next(numbers)}")

    return run


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The rows of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("straight")
    env = {**os.environ, "KEDIT_RUNS": str(folder / "runs")}
    process = Forked("kedit.run", RUN, env=env, cwd=folder, says=folder / "said")
    assert process.wait() == 0, process.communicate()
    return rows(folder / "runs")


def rows(runs: Path) -> str:
    [cell] = cell_directories(runs, "rows.jsonl")
    return (cell / "rows.jsonl").read_text()


def wait_for_steps(runs: Path, process: Forked, n: int) -> None:
    while process.poll() is None and not any(lines(cell) >= n for cell in cell_directories(runs, "steps.jsonl")):
        time.sleep(0.02)


def lines(cell: Path) -> int:
    return (cell / "steps.jsonl").read_bytes().count(b"\n")


def one_line(process: Forked, part: str) -> str:
    """The only line that says it."""
    out, err = process.communicate()
    assert "Traceback" not in out + err
    [line] = [line for line in (out + err).splitlines() if part in line]
    return line


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGINT, "interrupted; the same"),
        (signal.SIGHUP, "stopped by signal 1"),
        (signal.SIGTERM, "stopped by signal 15"),
    ],
)
def test_a_signal(start: Start, straight: str, tmp_path: Path, number: int, said: str) -> None:
    process = start("runs")
    wait_for_steps(tmp_path / "runs", process, 3)
    process.send_signal(number)
    assert process.wait() == 128 + number
    assert "the same command continues" in one_line(process, said)
    [cell] = look(tmp_path / "runs" / "adhoc")
    assert cell.state == "stopped"
    again = start("runs")
    assert again.wait() == 0
    assert "continuing after step" in again.communicate()[0]
    assert rows(tmp_path / "runs") == straight


def test_ctrl_c_stops_a_whole_sweep(start: Start, tmp_path: Path) -> None:
    process = start("runs", "-m", "seed=1,2,3")
    wait_for_steps(tmp_path / "runs", process, 2)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    one_line(process, "interrupted")
    assert [cell.state for cell in look(tmp_path / "runs" / "adhoc")] == ["stopped", "missing", "missing"]


def test_a_terminal_that_is_closed(straight: str, tmp_path: Path) -> None:
    """A real terminal: the system sends SIGHUP, and every write there fails."""
    pid, terminal = pty.fork()
    if not pid:
        env = {**os.environ, "KEDIT_RUNS": str(tmp_path), "PYTHONPATH": str(TESTS.parent)}
        os.execve(sys.executable, [sys.executable, "-m", "kedit.run", *RUN], env)
    os.set_blocking(terminal, False)
    while not any(lines(cell) >= 3 for cell in cell_directories(tmp_path, "steps.jsonl")):
        drained(terminal)
        time.sleep(0.02)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    [cell] = look(tmp_path / "adhoc")
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert (cell.state, cell.error) == ("stopped", "")
    assert "stopped by signal 1" in (cell.place / "run.log").read_text()


def drained(terminal: int) -> None:
    with suppress(BlockingIOError):
        os.read(terminal, 65536)


@pytest.mark.parametrize("size", [700, 4_000, 30_000])
def test_a_full_disk(start: Start, straight: str, tmp_path: Path, size: int) -> None:
    """Full when the config is written, in the rows, and in the state."""
    process = start("runs", program=(str(TESTS / "full_disk.py"), str(size)))
    assert process.wait() == 1
    assert "free some space, then the same command continues" in one_line(process, "the disk is full")
    again = start("runs")
    assert again.wait() == 0, again.communicate()
    assert rows(tmp_path / "runs") == straight


# --- a second process ------------------------------------------------------------------------------------------------


@pytest.fixture
def held(start: Start, tmp_path: Path) -> Iterator[Path]:
    """A cell that another process works in."""
    process = start("runs")
    wait_for_steps(tmp_path / "runs", process, 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    [cell] = cell_directories(tmp_path / "runs", "rows.jsonl")
    with FileLock(cell / ".lock"):
        yield cell


def test_a_refused_process_leaves_the_cell_alone(start: Start, held: Path, tmp_path: Path) -> None:
    second = start("runs")
    assert second.wait() == 1
    one_line(second, "another run is at work here")
    third = start("runs", "-m")
    assert third.wait() == 1
    one_line(third, "another run is at work here")
    [cell] = look(tmp_path / "runs" / "adhoc")
    assert (cell.state, cell.error) == ("running", "")
    assert not (held / "error").exists()


def test_a_refused_config_leaves_the_cell_alone(start: Start, tmp_path: Path) -> None:
    first = start("runs")
    wait_for_steps(tmp_path / "runs", first, 3)
    first.send_signal(signal.SIGTERM)
    first.wait()
    [cell] = cell_directories(tmp_path / "runs", "rows.jsonl")
    (cell / "config.yaml").write_text((cell / "config.yaml").read_text().replace("seed: 0", "seed: 5"))
    second = start("runs")
    assert second.wait() == 1
    one_line(second, "holds a run with another config")
    [seen] = look(tmp_path / "runs" / "adhoc")
    assert (seen.state, seen.error) == ("stopped", "")


def test_a_signal_stops_what_an_editor_learns_before_its_first_edit(tmp_path: Path) -> None:
    """That can take hours; what is kept of it lies in checkpoints and the cache of its own."""
    learning = Journal(tmp_path / "cell", "seed: 0")
    with learning, pytest.raises(SystemExit) as stopped, learning.fitting():
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 128 + signal.SIGTERM
