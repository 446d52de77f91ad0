"""Slurm's queue, and which of its jobs runs which cell of a sweep. Needs neither an accounting database nor Python
packages: only squeue."""

import json
import logging
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kedit.common.text_files import read_text, write_text

log = logging.getLogger(__name__)
JOBS = Path(".slurm", "jobs.json")  # below the sweep's folder
FIELDS = "%i|%T|%N|%r"


@dataclass(frozen=True)
class Queued:
    """A job that Slurm has not ended: its state (PENDING, RUNNING, ...), its node, why it waits."""

    state: str
    node: str
    reason: str


def has_slurm() -> bool:
    return shutil.which("squeue") is not None


def queue(jobs: Iterable[str]) -> dict[str, Queued] | None:
    """Those of these jobs ("12", "12_3") that wait or run; None if Slurm does not answer."""
    ids = sorted({job.partition("_")[0] for job in jobs})
    if not ids:
        return {}
    command = ["squeue", "--noheader", "--array", "--format", FIELDS, "--jobs", ",".join(ids)]
    try:
        asked = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if asked.returncode and "Invalid job id" not in asked.stderr:  # said of a job that ended long ago
        log.warning("squeue: %s", asked.stderr.strip())
        return None
    fields = [line.split("|") for line in asked.stdout.splitlines() if line.count("|") == FIELDS.count("|")]
    return {job: Queued(state, node, reason) for job, state, node, reason in fields}


def jobs_of(sweep: Path) -> dict[str, str]:
    """Cell's directory below the sweep -> the Slurm job that was last submitted for it."""
    try:
        return {str(cell): str(job) for cell, job in json.loads(read_text(sweep / JOBS) or "{}").items()}
    except (ValueError, AttributeError):
        log.warning("%s is damaged; which job runs which cell is not known", sweep / JOBS)
        return {}


def record_jobs(sweep: Path, jobs: Mapping[str, str]) -> None:
    (sweep / JOBS).parent.mkdir(parents=True, exist_ok=True)
    write_text(sweep / JOBS, json.dumps(jobs_of(sweep) | dict(jobs), indent=1, ensure_ascii=False))


def queued_cells(sweep: Path) -> dict[str, tuple[str, Queued]]:
    """Cell's directory -> its job and what Slurm says of it, of the cells that Slurm has not ended."""
    jobs = jobs_of(sweep)
    there = (queue(jobs.values()) or {}) if jobs and has_slurm() else {}
    return {cell: (job, there[job]) for cell, job in jobs.items() if job in there}
