"""hydra/launcher=slurm: each cell of a sweep is a task of a Slurm job array (submitit).

A task that is preempted, or whose time is over, finishes its step, commits and is queued again; it continues there.
What became of the cells is read from their directories; Slurm is only asked whether a job still waits or runs, so no
accounting database is needed.
"""

import logging
import shutil
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.utils import JobReturn, filter_overrides
from omegaconf import OmegaConf

from kedit.common.errors import InputError, first_line
from kedit.common.slurm import JOBS, Queued, queue, queued_cells, record_jobs
from kedit.loop.stop_signals import STOPS
from kedit.run.launchers.job import SweepContext, SweepLauncher, returned

log = logging.getLogger(__name__)
POLL_S = 5.0
ABSENT = 3  # looks in a row that do not find a job: its files may come late over the network
TELL_S = 60.0  # between lines about the queue
OPTIONS = ("partition", "account", "qos", "constraint", "nodelist", "exclude", "comment")


class Slurm(SweepLauncher):
    """`requeue`: how often a cell whose time is over is queued again. `wait`: return when all jobs have ended; without,
    at once (`python -m kedit.status SWEEP --wait` waits). The other options are sbatch's; `more`: any of its long
    options, and `setup`: lines of the shell before each cell."""

    def __init__(self, **options: Any) -> None:
        plain = OmegaConf.to_container(OmegaConf.create(options), resolve=True)
        self.options: dict[str, Any] = plain  # type: ignore[assignment]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        jobs = {self.cell_of(job): job for job in self.waiting(job_overrides)}
        if not jobs:
            return []
        there = {cell: job for cell, (job, _) in queued_cells(self.home).items() if cell in jobs}
        if there:
            log.info("%d cells are in the queue already: %s", len(there), ", ".join(sorted(there.values())))
        new = {cell: job for cell, job in jobs.items() if cell not in there}
        submitted = self.submit(new, initial_job_idx) if new else {}
        record_jobs(self.home, submitted)
        if not self.options["wait"]:
            log.info("submitted; python -m kedit.status %s --wait waits for the cells", self.home.name)
            raise SystemExit(0)
        wait_for([*there.values(), *submitted.values()])
        return [returned(job, None) for job in jobs.values()]

    def submit(self, jobs: Mapping[str, Sequence[str]], first: int) -> dict[str, str]:
        """Cell -> its job's id. Raises InputError if sbatch refuses."""
        executor = self.executor()
        tasks = [Task(self.context(), number, overrides) for number, overrides in enumerate(jobs.values(), first)]
        try:
            submitted = executor.map_array(_run, tasks)
        except (RuntimeError, OSError) as error:
            raise InputError(f"sbatch refused the cells: {first_line(error)}") from error
        log.info("%d cells submitted: job %s", len(jobs), submitted[0].job_id.partition("_")[0])
        return dict(zip(jobs, (job.job_id for job in submitted), strict=True))

    def executor(self) -> Any:
        """Raises InputError if submitit or Slurm is not there."""
        try:
            import submitit
        except ImportError as error:
            raise InputError("hydra/launcher=slurm needs submitit; pip install 'kedit[slurm]'") from error
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise InputError(
                "hydra/launcher=slurm: no sbatch on this machine; start it on a node that submits to Slurm"
            )
        folder = self.home / JOBS.parent
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=self.options["requeue"])
        executor.update_parameters(**sbatch_options(self.options))
        return executor

    def cell_of(self, overrides: Sequence[str]) -> str:
        """Its directory below the sweep; for a job that another sweeper chose, its overrides."""
        given = filter_overrides(overrides)
        planned = {tuple(cell.entry["overrides"]): cell.entry["directory"] for cell in self.sweep.planned}
        return str(planned.get(tuple(given), " ".join(given)))


def sbatch_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """submitit's names for the options of conf/hydra/launcher/slurm.yaml."""
    more: dict[str, Any] = {"requeue" if options["requeue"] else "no-requeue": True, **(options["more"] or {})}
    more |= {name: options[name] for name in OPTIONS if options.get(name) is not None and name != "partition"}
    named = {"slurm_partition": options.get("partition"), "slurm_setup": list(options["setup"] or []) or None}
    if options["gpus"]:
        named["slurm_gpus_per_node"] = options["gpus"]
    return {
        "name": options["name"],
        "timeout_min": options["time_min"],
        "cpus_per_task": options["cpus"],
        "mem_gb": options["mem_gb"],
        "tasks_per_node": 1,
        "nodes": 1,
        "slurm_array_parallelism": options["array_parallelism"],
        "slurm_signal_delay_s": options["signal_s"],
        "slurm_additional_parameters": more,
        **{name: value for name, value in named.items() if value is not None},
    }


class Task:
    """A cell, as submitit sends it to a node; what it has done so far lies in the cell's directory."""

    def __init__(self, context: SweepContext, number: int, overrides: Sequence[str]) -> None:
        self.context, self.number, self.overrides = context, number, list(overrides)

    def run(self) -> None:
        self.context.run(self.number, self.overrides)


class _Runs:
    """What submitit calls; with `checkpoint` it may be queued again."""

    def __call__(self, task: Task) -> None:
        try:
            task.run()
        except SystemExit as stopped:
            if stopped.code not in {128 + number for number in STOPS}:
                raise
            from submitit import JobEnvironment

            signal.raise_signal(JobEnvironment()._usr_sig())  # the step is committed: submitit queues the task again
            raise

    def checkpoint(self, task: Task) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, task)


_run = _Runs()


def said_of(job: Queued) -> str:
    """Its state, and why it waits: a job that asks for more than a partition has waits for ever."""
    waits = job.state == "PENDING" and job.reason not in ("None", "Resources", "Priority", "JobArrayTaskLimit")
    return job.state.lower() + (f" ({job.reason})" if waits else "")


def wait_for(jobs: Sequence[str]) -> None:
    """Returns when Slurm has ended all of them; says now and then how many wait and run."""
    absent: Counter[str] = Counter()
    told, last = "", 0.0
    while waiting := [job for job in jobs if absent[job] < ABSENT]:
        there = queue(waiting)
        if there is not None:
            absent.update(job for job in waiting if job not in there)
            absent.subtract({job: absent[job] for job in waiting if job in there})
            states = Counter(said_of(there[job]) for job in waiting if job in there)
            said = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
            if said and said != told and time.monotonic() - last > TELL_S:
                log.info("slurm: %s", said)
                told, last = said, time.monotonic()
        time.sleep(POLL_S)
