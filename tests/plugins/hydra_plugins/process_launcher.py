"""A launcher as joblib's or submitit's: each cell in a process of its own, to which the task is sent pickled."""

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn


@dataclass
class ProcessLauncherConf:
    _target_: str = "hydra_plugins.process_launcher.ProcessLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="process", node=ProcessLauncherConf)


class ProcessLauncher(BasicLauncher):
    """What a process learns stays in it."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        task = pickle.dumps(self.task_function)
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            if not (pid := os.fork()):
                self.task_function = pickle.loads(task)
                super().launch([overrides], number)
                os._exit(0)
            os.waitpid(pid, 0)
        return []
