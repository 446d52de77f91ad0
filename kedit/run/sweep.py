"""A sweep: the cells that its grid has, what went wrong in them, and the table at its end.

A sweep's yaml gives the axes of a grid (hydra.sweeper.params); an axis on the command line replaces the yaml's.
`cells.json` in the sweep's folder lists every cell that was ever asked for.
"""

import json
import logging
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kedit.common.axes import axis_values
from kedit.common.errors import InputError, first_line
from kedit.common.text_files import write_text
from kedit.reports.present import present_cells, show_cells
from kedit.results.cell_files import CELLS, ERROR, is_finished, requested_cells
from kedit.run.cell import IS_WORKER
from kedit.run.composition import explained
from kedit.run.naming import GROUPS, cell_directory, names_of
from kedit.run.options import General, check_general

log = logging.getLogger(__name__)


def present(group: str, *names: str) -> str:
    """Those of `names` that conf/<group> has, as an axis; where it has none all of them, for Hydra to say so."""
    return ",".join(name for name in names if name not in _absent(group, names)) or ",".join(names)


def _absent(group: str, names: Sequence[str]) -> list[str]:
    known = GlobalHydra.instance().config_loader().get_group_options(group, ObjectType.CONFIG)
    return [name for name in names if name not in known]


OmegaConf.register_new_resolver("kedit.present", present, replace=True)


def left_out(config: DictConfig) -> list[str]:
    """One line for each axis of which the sweep's yaml names choices that do not exist yet."""
    axes = OmegaConf.to_container(OmegaConf.create(config.hydra.sweeper.get("params") or {}), resolve=False)
    given = {override.partition("=")[0] for override in config.hydra.overrides.task}
    lines = []
    asked = {str(axis): str(text) for axis, text in axes.items() if axis not in given}  # type: ignore[union-attr]
    for axis, text in asked.items():
        if text.startswith("${kedit.present:") and (absent := _absent(axis, axis_values(text))):
            lines.append(f"left out, conf/{axis} does not have them yet: {', '.join(absent)}")
    return lines


def outside(cfg: DictConfig, names: Mapping[str, str]) -> bool:
    """Is this a cell of the grid that the printed table does not have (table.without in the sweep's yaml)?"""
    cell = {**names, "T": str(cfg.T)}
    rules = OmegaConf.select(cfg, "table.without") or []
    return any(all(_is(cell[key], value) for key, value in rule.items()) for rule in rules)


def _is(choice: str, value: Any) -> bool:
    return choice == value if isinstance(value, str) else choice in value


def jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of each point of a multirun's grid; none where another sweeper than Hydra's own chooses them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    if not config.hydra.sweeper["_target_"].endswith(".BasicSweeper"):
        return []
    axes = [f"{axis}={values}" for axis, values in (config.hydra.sweeper.params or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*axes, *config.hydra.overrides.task])
    return BasicSweeper.split_arguments(parsed, None)[0]


def planned(config: DictConfig) -> list[dict[str, Any]]:
    """The cells of a multirun, as cells.json has them."""
    general = list(config.hydra.overrides.hydra)
    cells = (_composed([*general, *job], job) for job in jobs(config))
    return [_entry(cell) for cell in cells if not outside(cell, names_of(cell.hydra))]


def _composed(overrides: Sequence[str], job: Sequence[str]) -> DictConfig:
    """One cell. Raises InputError, which names it, if it cannot be composed."""
    try:
        return compose("config", list(overrides), return_hydra_config=True)
    except Exception as error:
        raise InputError(f"the cell {' '.join(job)}: {explained(error, overrides)}") from error


def _entry(cfg: DictConfig) -> dict[str, Any]:
    names = names_of(cfg.hydra)
    home = cell_directory(Path(), names, cfg.T, cfg.seed).relative_to(names["sweeps"])
    chosen = {group: names[group] for group in GROUPS}
    return {"directory": str(home), **chosen, "T": cfg.T, "seed": cfg.seed, "overrides": list(cfg.hydra.overrides.task)}


def record(sweep: Path, asked: Iterable[Mapping[str, Any]]) -> None:
    """Add cells to what was ever asked of a sweep."""
    with FileLock(sweep / f".{CELLS}.lock"):
        cells = {cell["directory"]: cell for cell in [*requested_cells(sweep), *asked]}
        write_text(sweep / CELLS, json.dumps([cells[key] for key in sorted(cells)], indent=1, ensure_ascii=False))


def leave_error(directory: Path, error: Exception) -> str:
    """Write what went wrong into the cell, where it has a directory: the last line says it. Returns that line."""
    expected = isinstance(error, HydraException | InputError)
    said = str(error).strip().replace("\n", " ") if expected else f"{type(error).__name__}: {first_line(error)}"
    if directory.is_dir():
        trace = "" if expected else "".join(traceback.format_tb(error.__traceback__))
        write_text(directory / ERROR, f"{trace}{said}\n")
    elif not expected:
        log.debug("%s", directory, exc_info=error)
    return said


class Sweep(Callback):
    """Around Hydra's runs: an output folder that cannot be made is said in one sentence; a sweep ends with a table.

    A cell that fails does not stop the others; the command then ends with exit status 1, after its table.
    """

    cells: ClassVar[list[Path]] = []  # that this process has run
    failed: ClassVar[list[Path]] = []  # that this process has not finished

    def __init__(self) -> None:
        self.asked: list[Path] = []

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self._check(config, config.runs)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        home = Path(config.hydra.sweep.dir)
        if IS_WORKER:
            return
        for line in left_out(config):
            log.warning("%s", line)
        try:
            cells = planned(config)
        except InputError as error:  # an exception would only be warned of by Hydra
            sys.exit(str(error))
        self._check(config, str(home))
        self.asked = [home / cell["directory"] for cell in cells]
        record(home, cells)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """A named sweep's table holds all its cells; without a name, those of this command."""
        if IS_WORKER:
            return
        name, home = config.hydra.runtime.choices.sweeps, Path(config.hydra.sweep.dir)
        self._show(config, home, name)
        failed = {*self.failed, *(cell for cell in self.asked if not is_finished(cell))}
        if failed:
            asked = max(len(self.asked), len(failed))
            sys.exit(f"{len(failed)} of {asked} cells did not finish: python -m kedit.status {name}")

    def _show(self, config: DictConfig, home: Path, name: str) -> None:
        """Of a paper's table in its layout, and as a page; of other sweeps and of no sweep as it is."""
        from kedit.reports.table.plain import show
        from kedit.reports.table.show import show_sweep

        try:
            if name == "adhoc":
                show_cells(self.cells)
                return
            made = present_cells(home)
            track(config, made)
            try:
                page = show_sweep(name, home)
            except InputError as error:
                log.warning("not in the paper's layout: %s", error)
                page = None
            log.info("%s", page) if page else show(made)
        except InputError as error:
            log.warning("no table: %s", error)

    def _check(self, config: DictConfig, folder: str) -> None:
        """Hydra would only warn of an exception."""
        try:
            check_general({name: config[name] for name in General.__annotations__ if name in config})
            Path(folder).mkdir(parents=True, exist_ok=True)
        except InputError as error:
            sys.exit(str(error))
        except OmegaConfBaseException as error:
            sys.exit(f"{error.full_key}: {first_line(error)}; give a value")
        except OSError as error:
            sys.exit(f"{folder} cannot be made ({error.strerror}); set KEDIT_RUNS to a writable folder")


def track(cfg: DictConfig, made: Sequence[Any]) -> None:
    """A named sweep's tables and pictures in a run of their own, beside those of its cells."""
    from kedit.reports.dashboard import is_new, sweep_report
    from kedit.results.cells import find

    directory, sweep = Path(cfg.hydra.sweep.dir), cfg.hydra.runtime.choices.sweeps
    cells = find(directory)
    if is_new(directory, cells):
        tracker = instantiate(cfg.tracker, _convert_="all")
        tracker.start(directory=directory, name="all cells", group=sweep, tags=["all cells"], config={"sweeps": sweep})
        tracker.finish(sweep_report(cells, made, directory))
