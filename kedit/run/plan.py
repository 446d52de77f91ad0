"""Which cells of a sweep lack what, without running anything."""

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import kedit.run.main  # noqa: F401 (the resolvers of conf/)
from kedit.common.errors import InputError
from kedit.common.paths import ROOT, runs
from kedit.results.cell_files import requested_cells
from kedit.run.composition import CONF
from kedit.run.sweep import cells_of, planned, record


def plan(sweep: str) -> None:
    """Look for what the cells of a sweep need: those that were run before, or its whole grid; cells.json
    keeps what is missing. Raises InputError if there is no such sweep."""
    if not (ROOT / "sweeps" / f"{sweep}.yaml").is_file():
        raise InputError(f"{sweep}: no sweep of this name in {ROOT / 'sweeps'}")
    home = runs() / sweep
    with initialize_config_dir(CONF, version_base="1.3"):
        before = [cell["overrides"] for cell in requested_cells(home)]
        cells = cells_of(before, home) if before else planned(_grid(sweep), home)
    home.mkdir(parents=True, exist_ok=True)
    record(home, [cell.entry for cell in cells])


def _grid(sweep: str) -> DictConfig:
    """What `kedit sweeps=<sweep>` gives its sweeper."""
    config = compose("config", [f"sweeps={sweep}"], return_hydra_config=True)
    OmegaConf.set_readonly(config, False)
    config.hydra.overrides.task = [f"sweeps={sweep}"]
    return config
