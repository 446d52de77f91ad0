"""A sweep that is killed and started again ends as one that was not."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import run_kedit
from forked import Forked

from kedit.reports.cell_status import code, look

QUICK = ["model.people=20", "model.steps=2", "model.width=32", "model.mlp=32", "T=2", "editor=kdpo", "seed=101,102,103"]
TWELVE = ["T=5,10", "seed=101,102,103", "commit_every_s=0"]  # x DPO, KDPO


def sweep(folder: Path) -> Path:
    return folder / "runs" / "kdpo_table6"


def command(*arguments: str) -> list[str]:
    return ["sweeps=kdpo_table6", "model=world", "dataset=world", "tracker=none", "eval.fluency_tokens=20", *arguments]


def start(folder: Path, *arguments: str) -> Forked:
    env = {**os.environ, "KEDIT_RUNS": str(folder / "runs")}
    return Forked("kedit.run", command(*arguments), env=env, cwd=folder, says=folder / "said")


def finished(folder: Path) -> dict[Path, int]:
    """Cells that are done, and when their rows were last written."""
    done = [cell.place for cell in look(sweep(folder)) if cell.state == "done"] if sweep(folder).exists() else []
    return {place: (place / "rows.jsonl").stat().st_mtime_ns for place in done}


def kill(folder: Path, process: Forked, *, cells: int, rng: random.Random) -> dict[Path, int]:
    """SIGKILL once so many cells are done, and a little later; returns those that were."""
    while process.poll() is None and len(finished(folder)) < cells:
        time.sleep(0.05)
    time.sleep(rng.uniform(0, 0.4))
    assert process.poll() is None, "too late to kill"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert code(look(sweep(folder))) == 2
    return finished(folder)


def assert_as_uninterrupted(folder: Path, straight: Path, n: int) -> None:
    cells, others = look(sweep(folder)), look(sweep(straight))
    assert [cell.directory for cell in cells] == [cell.directory for cell in others]
    assert len(cells) == n
    assert code(cells) == 0
    for cell, other in zip(cells, others, strict=True):
        assert (cell.place / "rows.jsonl").read_text() == (other.place / "rows.jsonl").read_text()
        assert [step["step"] for step in cell.steps] == list(range(len(cell.steps)))  # each once
    tables = [pd.read_csv(sweep(place) / "table.csv").drop(columns="seconds") for place in (folder, straight)]
    pd.testing.assert_frame_equal(*tables)
    assert json.loads((sweep(folder) / "cells.json").read_text()) == json.loads(
        (sweep(straight) / "cells.json").read_text()
    )


def survives(folder: Path, grid: list[str], n: int, after: list[int]) -> None:
    """Killed once for each number of finished cells in `after`, then left to end."""
    rng = random.Random(os.environ.get("KEDIT_TEST_SEED", "7"))
    straight, killed = folder / "straight", folder / "killed"
    for place in (straight, killed):
        place.mkdir()
    assert run_kedit(straight, *command(*grid)).returncode == 0
    for cells in after:
        done = kill(killed, start(killed, *grid), cells=cells, rng=rng)
    process = start(killed, *grid)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    assert out.count("finished before") == len(done)
    assert {place: when for place, when in finished(killed).items() if place in done} == done  # left alone
    assert_as_uninterrupted(killed, straight, n)


def test_a_sweep_killed_and_started_again(tmp_path: Path) -> None:
    survives(tmp_path, QUICK, 3, [1])


@pytest.mark.acceptance
def test_a_sweep_of_twelve_cells_killed_twice_at_random(tmp_path: Path) -> None:
    rng = random.Random(os.environ.get("KEDIT_TEST_SEED", "7"))
    survives(tmp_path, TWELVE, 12, sorted(rng.sample(range(10), 2)))
