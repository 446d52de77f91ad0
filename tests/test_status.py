"""What `python -m kedit.status` says of cells in every state, and what it deletes from the cache."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from kedit.common import cache
from kedit.common.cache import cache_entries, cached
from kedit.reports.cell_status import Seen, code, look, remaining
from kedit.run.sweep import record

BASE = "world/world/kdpo/sequential-T"


def cell(sweep: Path, directory: str, *, status: str | None, edits: int = 0, error: str = "") -> Path:
    home = sweep / directory
    home.mkdir(parents=True)
    if status:
        (home / "status").write_text(status)
    (home / "meta.json").write_text(json.dumps({"cases": 10, "model_is": {"identity": "commit:abc"}}))
    steps = [{"step": 0, "cases": [], "eval_s": 1.0}]
    steps += [{"step": i, "cases": [f"c{i}"], "edit_s": 0.5, "eval_s": 0.5} for i in range(1, edits + 1)]
    (home / "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps) + '{"step": 9, "ca')
    if error:
        (home / "error").write_text(error)
    return home


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A cell in each state; the process that runs one of them is this one."""
    home = tmp_path / "runs" / "kdpo_table6"
    cell(home, f"{BASE}5/seed1", status="finished", edits=10)
    cell(home, f"{BASE}10/seed1", status="running", edits=5)
    cell(home, f"{BASE}10/seed2", status="running", edits=4, error="Traceback\nValueError: the last line\n")
    cell(home, f"{BASE}100/seed1", status="running", edits=2)
    record(home, [{"directory": f"{BASE}100/seed2"}, {"directory": f"{BASE}5/seed1"}])
    return home


def states(sweep: Path) -> dict[str, str]:
    return {"/".join(cell.column): cell.state for cell in look(sweep)}


def test_the_state_of_every_cell_in_order_of_T(sweep: Path) -> None:
    with FileLock(sweep / f"{BASE}10/seed1/.lock"):
        assert list(states(sweep).items()) == [
            ("sequential-T5/seed1", "done"),
            ("sequential-T10/seed1", "running"),
            ("sequential-T10/seed2", "failed"),
            ("sequential-T100/seed1", "stopped"),
            ("sequential-T100/seed2", "missing"),
        ]
    assert states(sweep)["sequential-T10/seed1"] == "stopped"  # the process is gone


def test_pace_and_time_left(sweep: Path) -> None:
    with FileLock(sweep / f"{BASE}10/seed1/.lock"):
        cells = look(sweep)
        running = cells[1]
        assert (running.edits, running.wanted, running.rate) == (5, 10, 2.0)
        assert running.left == pytest.approx(5 * 6 / 5)  # five of ten in six seconds, tests included
        assert remaining(cells[:2]) == pytest.approx(6.0)
        assert remaining(cells) > remaining(cells[:2])


def test_the_exit_status_tells_scripts(sweep: Path) -> None:
    done, stopped, failed, *_, missing = look(sweep)
    assert [code([done]), code([done, stopped]), code([missing]), code([stopped, failed])] == [0, 2, 2, 1]


def run(runs: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kedit.status", *arguments]
    env = {**os.environ, "KEDIT_RUNS": str(runs), "KEDIT_CACHE": str(runs / "cache"), "COLUMNS": "60", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_what_is_shown(sweep: Path) -> None:
    done = run(sweep.parent, "kdpo_table6")
    assert done.returncode == 1, done.stderr
    for said in (
        "world / world / kdpo",
        "failed 4/10",
        "stopped 5/10",
        "missing",
        "5 cells: 1 done, 2 stopped, 1 failed, 1 missing",
        f"failed: {BASE}10/seed2: ValueError: the last line",
        "model world: commit:abc",
        "cache ",
    ):
        assert said in done.stdout
    nothing = run(sweep.parent, "kdpo_table7")
    assert nothing.returncode == 1
    assert "kdpo_table7: no cell there" in nothing.stderr


def test_pruning_names_what_it_would_delete_and_keeps_what_runs_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))

    def build(folder: Path) -> None:
        (folder / "data").write_bytes(bytes(1000))

    old, new, again = (cached("kind", {"name": name}, build) for name in ("old", "new", "again"))
    for path in (old, again):
        os.utime(path, (time.time() - 40 * 86400,) * 2)
    assert cached("kind", {"name": "again"}, build) == again  # a run uses it
    dry = run(tmp_path, "--prune", "30", KEDIT_CACHE=str(tmp_path / "cache"))
    assert dry.returncode == 0, dry.stderr
    assert f"would delete {old}" in dry.stdout
    assert "--yes" in dry.stdout
    assert {kind.path for kind in cache_entries()} == {old, new, again}
    assert "deleted" in run(tmp_path, "--prune", "30", "--yes", KEDIT_CACHE=str(tmp_path / "cache")).stdout
    assert {kind.path for kind in cache_entries()} == {new, again}
    assert cached("kind", {"name": "old"}, build).exists()


def test_a_cell_without_steps_has_no_pace(tmp_path: Path) -> None:
    seen: Any = Seen(tmp_path, f"{BASE}5/seed1")
    assert (seen.state, seen.edits, seen.wanted, seen.error) == ("missing", 0, None, "")
    assert cache.contents().startswith("cache ")
