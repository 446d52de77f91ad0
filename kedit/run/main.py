"""kedit: the only entry that computes. One cell, or the cells of a grid one after another."""

import logging
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from kedit.common.errors import InputError
from kedit.common.paths import ROOT
from kedit.common.terminal import check_command_line, use_safe_output
from kedit.reports.present import show_cells, showing
from kedit.run import launchers as launchers  # registers them with Hydra
from kedit.run.cell import IS_WORKER, message, one_sentence, run
from kedit.run.composition import RAW, command_line
from kedit.run.naming import cell_directory, names_of
from kedit.run.numbers import number_files
from kedit.run.options import check_general
from kedit.run.references import check_added, resolved
from kedit.run.search_path import find_own_code
from kedit.run.sweep import is_blocked, outside

log = logging.getLogger(__name__)


def main() -> None:
    """The command: what its line asks for, with Hydra."""
    use_safe_output()
    try:
        check_command_line(sys.argv)
        with command_line():
            hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")(cell)()
    except InputError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        log.warning("interrupted; the same command continues after its last commit")
        sys.exit(130)


def cell(cfg: DictConfig) -> None:
    """One cell, and its table; a multirun shows one table of all its cells when it is through.

    Launchers send this function to other processes by its name.
    """
    job = HydraConfig.get()
    find_own_code(job)
    names, alone = names_of(job), job.mode == RunMode.RUN
    directory = Path("/".join(names[group] for group in ("sweeps", "model", "dataset", "editor", "setting")))
    try:
        with one_sentence():
            config = resolved(cfg, names)
            directory = cell_directory(Path(config["runs"]), names, config["T"], config["seed"])
            check_general(config)
            check_added(job.overrides.task, config)
            if not alone and outside(cfg, names):
                log.info("not in the printed table (table.without): %s", directory)
                return
            if not alone and is_blocked(Path(job.sweep.dir), directory):  # the sweep has said so
                return
            run(cfg, names, number_files(job), alone=alone)
    except Exception as error:
        if alone and isinstance(error, HydraException) and not RAW:
            sys.exit(message(error))
        if alone:
            raise
        log.error("%s: %s", directory, message(error))
        return
    if alone and not IS_WORKER:
        with showing(directory):
            show_cells([directory])
