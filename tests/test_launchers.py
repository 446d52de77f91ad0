"""Launchers: workers that each have GPUs of their own, and jobs of Slurm, whose squeue is a script here."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from omegaconf import OmegaConf
from worker_jobs import Jobs

from kedit.common import slurm
from kedit.common.errors import InputError
from kedit.common.paths import ROOT
from kedit.common.slurm import Queued, queue, queued_cells, record_jobs
from kedit.reports.cell_status import Seen, look
from kedit.run.launchers.gpus import WorkerPool, visible_gpus, worker_devices
from kedit.run.launchers.slurm import sbatch_options
from kedit.run.launchers.worker import Worker

PRETEND = Path(__file__).parent / "pretend"
sys.path.insert(0, str(PRETEND))
from build import library, why_not  # noqa: E402


@pytest.mark.parametrize(
    ("gpus", "per_cell", "devices"),
    [
        (["0", "1", "2"], 1, ["0", "1", "2"]),
        (["0", "1", "2", "3", "4"], 2, ["0,1", "2,3"]),
        (["GPU-a", "MIG-b"], 1, ["GPU-a", "MIG-b"]),
        ([], 1, ["", ""]),
    ],
)
def test_each_worker_has_gpus_of_its_own(gpus: list[str], per_cell: int, devices: list[str]) -> None:
    assert worker_devices(gpus, per_cell, workers=2) == devices


def test_more_gpus_for_a_cell_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match=r"gpus.per_cell=3: there are 2 GPUs \(0, 1\)"):
        worker_devices(["0", "1"], 3, workers=1)


@pytest.mark.parametrize(("given", "seen"), [("2, 3", ["2", "3"]), ("", []), ("-1", [])])
def test_only_visible_gpus_are_used(monkeypatch: pytest.MonkeyPatch, given: str, seen: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == seen


def run_all(jobs: Jobs, devices: list[str], n: int, attempts: int = 3) -> tuple[list, WorkerPool]:
    pool = WorkerPool([Worker(device, i) for i, device in enumerate(devices)], jobs.run, attempts)
    with ThreadPoolExecutor(len(devices)) as threads:
        results = list(threads.map(pool.run, range(n), [[f"seed={i}"] for i in range(n)]))
    pool.close()
    return results, pool


def test_cells_are_handed_out_as_workers_come_free_and_a_killed_ones_is_run_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No device is used twice at once, and only the killed worker's cell is lost."""
    jobs = Jobs(tmp_path, dies=5)
    with caplog.at_level(logging.WARNING):
        results, _ = run_all(jobs, ["0", "1", "2"], 12)
    assert [result.return_value for result in results] == [f"seed={i}" for i in range(12)]
    notes = jobs.notes()
    assert sorted(note["number"] for note in notes) == list(range(12))
    assert {note["devices"] for note in notes} == {"0", "1", "2"}
    for device in "012":
        own = [note for note in notes if note["devices"] == device]
        assert all(one["ended"] <= other["began"] for one, other in pairwise(own))
    assert len(list(tmp_path.glob("*.json"))) == 13
    assert len({note["pid"] for note in notes}) <= 4  # workers stay between cells; one was replaced
    assert "attempt 1 of 3 of the cell seed=5" in caplog.text


def test_a_cell_that_kills_every_worker_is_given_up(tmp_path: Path) -> None:
    results, _ = run_all(Jobs(tmp_path, dies=0), [""], 1, attempts=1)
    assert results == [None]


def test_after_a_signal_no_cell_is_started(tmp_path: Path) -> None:
    pool = WorkerPool([Worker("", 1)], Jobs(tmp_path).run, 3)
    pool.stop(15)
    assert pool.run(0, ["seed=0"]) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.acceptance
@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_a_grid_over_three_pretend_gpus_loses_nothing_when_a_worker_is_killed(tmp_path: Path) -> None:
    """12 cells; each says in its log which GPU it had, and no GPU has two at once."""
    pretend = [PRETEND / "site", PRETEND, PRETEND.parents[1]]
    env = {
        **os.environ,
        **{"PYTHONPATH": os.pathsep.join(map(str, pretend)), "PRETEND_LIB": str(library()), "PRETEND_DEVICES": "3"},
        **{"CUDA_VISIBLE_DEVICES": "0,1,2", "KEDIT_RUNS": str(tmp_path / "runs")},
    }
    quick = ["eval.kinds=[reliability,locality]", "eval.fluency_tokens=0", "tracker=none", "commit_every_s=0"]
    grid = ["editor=ft_m,kdpo", "seed=101,102,103", "T=3,5", "setting=sequential", *quick]
    command = [sys.executable, "-m", "kedit.run", "-m", *grid, "hydra/launcher=gpus"]
    log = tmp_path / "log"
    with open(log, "w") as out:
        process = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=out, stderr=out)
    kill_a_worker(process, tmp_path / "runs")
    assert process.wait(timeout=1200) == 0, log.read_text()
    said = log.read_text()
    assert said.count("attempt 1 of 3 of the cell") == 1
    cells = look(tmp_path / "runs" / "adhoc")
    assert [cell.state for cell in cells] == ["done"] * 12
    uses = [(cell.meta["machine"]["gpus"], *times(cell)) for cell in cells]
    assert {gpu for gpu, *_ in uses} == {"0", "1", "2"}
    assert {cell.meta["model_is"]["device"] for cell in cells} == {"cuda:0"}
    for gpu in "012":
        own = sorted((began, ended) for used, began, ended in uses if used == gpu)
        assert all(ended <= began for (_, ended), (began, _) in pairwise(own))


def kill_a_worker(process: subprocess.Popen, runs: Path) -> None:
    """SIGKILL to a worker that is in the middle of a cell."""
    children = psutil.Process(process.pid).children
    while process.poll() is None:
        workers = {worker.pid for worker in children() if "spawn_main" in " ".join(worker.cmdline())}
        for steps in runs.rglob("steps.jsonl") if runs.exists() else ():
            if steps.read_text().count("\n") < 3:
                continue
            holders = [pid for pid in workers if holds(pid, steps)]
            if holders:
                os.kill(holders[0], signal.SIGKILL)
                return
        time.sleep(0.02)
    raise AssertionError("no cell was under way")


def holds(pid: int, file: Path) -> bool:
    try:
        return any(opened.path == str(file) for opened in psutil.Process(pid).open_files())
    except psutil.Error:
        return False


def times(cell: Seen) -> tuple[float, float]:
    """When a cell's last attempt began to write its log, and when it finished, in seconds of one csteps."""
    lines = (cell.place / "run.log").read_text().splitlines()
    began = [line for line in lines if line.endswith(" steps")][-1]
    at = datetime.strptime(began[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
    return at, (cell.place / "status").stat().st_mtime


# --- Slurm -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A squeue that says this."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def says(script: str) -> None:
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "squeue").chmod(0o755)

    return says


def test_the_queue_needs_no_accounting(squeue: Callable[[str], None]) -> None:
    squeue("echo '7_0|RUNNING|n1|None'; echo '7_3|PENDING||Resources'")
    assert queue(["7_0", "7_3", "7_4"]) == {
        "7_0": Queued("RUNNING", "n1", "None"),
        "7_3": Queued("PENDING", "", "Resources"),
    }
    squeue("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert queue(["7_0"]) == {}
    squeue("echo 'Unable to contact slurm controller' >&2; exit 1")
    assert queue(["7_0"]) is None


def test_a_cancelled_job_is_not_waited_for(squeue: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    from kedit.run.launchers import slurm as launcher

    monkeypatch.setattr(launcher, "POLL_S", 0.0)
    squeue("exit 0")
    launcher.wait_for(["7_0", "7_1"])


def test_status_says_which_job_a_cell_waits_in(tmp_path: Path, squeue: Callable[[str], None]) -> None:
    cell = "world/world/kdpo/sequential-T5/seed1"
    record_jobs(tmp_path / "sweep", {cell: "7_3"})
    (tmp_path / "sweep" / "cells.json").write_text(f'[{{"directory": "{cell}"}}]')
    squeue("echo '7_3|PENDING||Resources'")
    assert queued_cells(tmp_path / "sweep")[cell][0] == "7_3"
    [seen] = look(tmp_path / "sweep")
    assert (seen.state, seen.whereabouts) == ("queued", "job 7_3 pending (Resources)")
    squeue("exit 0")
    [seen] = look(tmp_path / "sweep")
    assert seen.state == "missing"


def test_sbatch_is_given_what_the_yaml_says() -> None:
    options = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/hydra/launcher/slurm.yaml"), resolve=False)
    given = {**options, "name": "kedit", "partition": "gpu", "account": "mine", "more": {"mail-type": "END"}}
    said = sbatch_options(given)
    assert said["slurm_partition"] == "gpu"
    assert said["slurm_gpus_per_node"] == 1
    assert said["slurm_additional_parameters"] == {"requeue": True, "account": "mine", "mail-type": "END"}
    assert "slurm_gpus_per_node" not in sbatch_options({**given, "gpus": 0})
    assert sbatch_options({**given, "requeue": 0})["slurm_additional_parameters"]["no-requeue"] is True


def test_a_machine_without_slurm_has_an_empty_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_jobs(tmp_path, {"a/b": "7"})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.has_slurm()
    assert queued_cells(tmp_path) == {}
