"""kedit: the only entry that computes. One cell, or the cells of a grid one after another."""

import logging
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kedit.common.paths import ROOT
from kedit.reports.present import show_cells
from kedit.run.cell import IS_WORKER, one_sentence, run
from kedit.run.naming import cell_directory, names_of
from kedit.run.sweep import Sweep, leave_error, outside

log = logging.getLogger(__name__)
OmegaConf.register_new_resolver("kedit.root", lambda: str(ROOT), replace=True)


@hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")
def main(cfg: DictConfig) -> None:
    """One cell, and its table; a multirun shows one table of all its cells when it is through."""
    job = HydraConfig.get()
    names = names_of(job)
    directory = cell_directory(Path(cfg.runs), names, cfg.T, cfg.seed)
    alone = job.mode == RunMode.RUN
    if not alone and outside(cfg, names):
        log.info("not in the printed table (table.without): %s", directory)
        return
    try:
        with one_sentence():
            run(cfg, names)
    except Exception as error:
        said = leave_error(directory, error)
        if alone:
            raise
        log.error("%s: %s", directory, said)
        Sweep.failed.append(directory)
        return
    if alone and not IS_WORKER:
        show_cells([directory])
    Sweep.cells.append(directory)
