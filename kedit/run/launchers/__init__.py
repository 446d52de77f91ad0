"""Launchers of kedit's own: hydra/launcher=gpus (a worker for each GPU of this machine) and hydra/launcher=slurm.

Hydra takes plugins only from the package hydra_plugins, so they are registered under a name there.
"""

from hydra.core.plugins import Plugins

from kedit.run.launchers.gpus import Gpus
from kedit.run.launchers.slurm import Slurm

Plugins.instance().class_name_to_class |= {
    f"hydra_plugins.kedit.{launcher.__name__}": launcher for launcher in (Gpus, Slurm)
}
