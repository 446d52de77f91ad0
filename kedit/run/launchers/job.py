"""One cell of a sweep as a launcher sends it to another process."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from kedit.run.sweep import Sweep


@dataclass(frozen=True)
class SweepContext:
    """What the process of a cell needs besides the cell's overrides. It can be pickled: OmegaConf's resolvers cannot,
    so that process has its own."""

    hydra: HydraContext
    config: DictConfig
    task: TaskFunction
    singletons: dict[type, Any]  # Hydra's

    def run(self, number: int, overrides: Sequence[str]) -> Any:
        """Run the cell in this process. Returns what the task returns; the rest of Hydra's result cannot be pickled."""
        setup_globals()
        Singleton.set_state({**Singleton.get_state(), "instances": self.singletons})
        config = self.hydra.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        HydraConfig.instance().set_config(config)
        result = run_job(
            hydra_context=self.hydra,
            task_function=self.task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        return result.return_value


def returned(overrides: Sequence[str], value: Any) -> JobReturn:
    """A job's result as Hydra's sweepers read it."""
    result = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
    result.return_value = value
    return result


class SweepLauncher(Launcher):
    """Base class: a cell that is finished, or cannot start, is not launched."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    @property
    def home(self) -> Path:
        """The sweep's folder."""
        return Path(str(self.config.hydra.sweep.dir))

    @property
    def sweep(self) -> Sweep:
        [sweep] = [callback for callback in self.hydra_context.callbacks.callbacks if isinstance(callback, Sweep)]
        return sweep

    def context(self) -> SweepContext:
        return SweepContext(self.hydra_context, self.config, self.task_function, Singleton.get_state()["instances"])

    def waiting(self, jobs: Sequence[Sequence[str]]) -> list[Sequence[str]]:
        """The jobs, as overrides, whose cells have to run."""
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return [job for job in jobs if self.sweep.has_to_run(filter_overrides(job), self.home)]
