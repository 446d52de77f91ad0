"""A sweep: the cells that its grid has, what went wrong in them, and the table at its end.

A sweep's yaml gives the axes of a grid (hydra.sweeper.params); an axis on the command line replaces the yaml's.
`cells.json` in the sweep's folder lists every cell that was ever requested.
"""

import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kedit.common.axes import axis_values
from kedit.common.errors import InputError, first_line
from kedit.common.text_files import read_text, write_text
from kedit.reports.present import present_cells, show_cells, show_hints, showing
from kedit.results.cell_files import CELLS, CONFIG, is_finished, requested_cells
from kedit.results.integrity import DamagedFile, check_files
from kedit.run.cell import IS_WORKER, identity
from kedit.run.composition import explained
from kedit.run.naming import GROUPS, cell_directory, names_of
from kedit.run.options import GENERAL, check_general
from kedit.run.preflight import Preflight, said
from kedit.run.references import resolved
from kedit.run.search_path import find_own_code, has_resources

log = logging.getLogger(__name__)
STAND_INS = "resources=offline gives in-context editors what needs no download instead (docs/papers.md)."


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


@dataclass(frozen=True)
class Planned:
    """A cell that a multirun's grid has."""

    entry: Mapping[str, Any]  # the cell's entry in cells.json
    config: str  # the config that this command gives

    def directory(self, sweep: Path) -> Path:
        return sweep / self.entry["directory"]

    @property
    def missing(self) -> Sequence[str]:
        """A sentence about each file and model that it needs and does not find."""
        return self.entry.get("missing", ())

    def is_done(self, sweep: Path) -> bool:
        """Whether this very cell has finished, and nothing of it is damaged."""
        cell = self.directory(sweep)
        try:
            check_files(cell)
        except DamagedFile:
            return False
        return is_finished(cell) and read_text(cell / CONFIG) == self.config


def planned(config: DictConfig, home: Path | None = None) -> list[Planned]:
    """The cells of a multirun; with the sweep's folder `home` also what each that is not done there lacks."""
    general = list(config.hydra.overrides.hydra)
    return cells_of([[*general, *job] for job in jobs(config)], home)


def cells_of(overrides: Iterable[Sequence[str]], home: Path | None = None) -> list[Planned]:
    """The same of cells that are given by their overrides."""
    preflight = Preflight()
    cells = (compose_cell(cell) for cell in overrides)
    return [_planned(cell, home, preflight) for cell in cells if not outside(cell, names_of(cell.hydra))]


def _planned(cfg: DictConfig, home: Path | None, preflight: Preflight) -> Planned:
    cell = Planned(_entry(cfg), _identity(cfg))
    missing = [] if home is None or cell.is_done(home) else preflight.missing(cfg)
    return replace(cell, entry={**cell.entry, "missing": missing}) if missing else cell


def _identity(cfg: DictConfig) -> str:
    """What the cell needs; empty if its config cannot be resolved, and so the cell cannot run."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    try:
        return identity(resolved(own, names_of(cfg.hydra)))
    except InputError:
        return ""


def compose_cell(overrides: Sequence[str]) -> DictConfig:
    """One cell. Raises InputError, which names it, if it cannot be composed."""
    try:
        return compose("config", list(overrides), return_hydra_config=True)
    except Exception as error:
        cell = " ".join(given for given in overrides if not given.startswith("hydra."))
        raise InputError(f"the cell {cell}: {explained(error, overrides)}") from error


def _entry(cfg: DictConfig) -> dict[str, Any]:
    names = names_of(cfg.hydra)
    directory = cell_directory(Path(cfg.runs), names, cfg.T, cfg.seed).relative_to(Path(cfg.runs) / names["sweeps"])
    chosen = {group: names[group] for group in GROUPS}
    entry = {"directory": str(directory), **chosen, "T": cfg.T, "seed": cfg.seed}
    return entry | {"overrides": list(cfg.hydra.overrides.task)}


def is_blocked(sweep: Path, directory: Path) -> bool:
    """Whether this cell lacked a file or a model when its sweep was started."""
    return any(cell.get("missing") and sweep / cell["directory"] == directory for cell in requested_cells(sweep))


def record(sweep: Path, requested: Iterable[Mapping[str, Any]]) -> None:
    """Add cells to what was ever requested of a sweep."""
    with FileLock(sweep / f".{CELLS}.lock"):
        cells = {cell["directory"]: cell for cell in [*requested_cells(sweep), *requested]}
        write_text(sweep / CELLS, json.dumps([cells[key] for key in sorted(cells)], indent=1, ensure_ascii=False))


class Sweep(Callback):
    """Around Hydra's runs: an output folder that cannot be made is said in one sentence; a sweep ends with a table.

    What became of the cells is read from disk, so it is known whatever launched them. A cell that fails does not stop
    the others; the command then ends with exit status 1, after its table.
    """

    def __init__(self) -> None:
        self.planned: list[Planned] = []

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self._check(config, config.runs)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        home = Path(config.hydra.sweep.dir)
        if IS_WORKER:
            return
        find_own_code(config.hydra)
        for line in left_out(config):
            log.warning("%s", line)
        try:
            self.planned = planned(config, home)
        except InputError as error:  # an exception would only be warned of by Hydra
            sys.exit(str(error))
        self._check(config, str(home))
        record(home, [cell.entry for cell in self.planned])
        self._block(home)

    def has_to_run(self, overrides: Sequence[str], home: Path) -> bool:
        """Whether a job of these overrides has a cell in the table that can start and is not done. True if a sweeper
        other than Hydra's own chose the job."""
        cells = {tuple(cell.entry["overrides"]): cell for cell in self.planned}
        cell = cells.get(tuple(overrides))
        return not cells or (cell is not None and not cell.missing and not cell.is_done(home))

    def _block(self, home: Path) -> None:
        """Say once what is missing; end if no cell can start."""
        blocked = {cell.entry["directory"]: cell.missing for cell in self.planned if cell.missing}
        if not blocked:
            return
        lines = [*said(blocked, len(self.planned)), *([STAND_INS] if has_resources(home.name) else [])]
        if all(cell.missing or cell.is_done(home) for cell in self.planned):
            sys.exit("\n".join(lines))
        for line in lines:
            log.warning("%s", line)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """A named sweep's table holds all its cells; without a name, those of this command."""
        if IS_WORKER:
            return
        name, home = config.hydra.runtime.choices.sweeps, Path(config.hydra.sweep.dir)
        with showing(home):
            self._show(config, home, name)
        failed = sum(not cell.is_done(home) for cell in self.planned)
        if failed:
            sys.exit(f"{failed} of {len(self.planned)} cells did not finish: python -m kedit.status {name}")

    def _show(self, config: DictConfig, home: Path, name: str) -> None:
        """A paper's table in its layout, that of another sweep or of no sweep as it is; a named sweep's page."""
        from kedit.reports.page.build import write_page
        from kedit.reports.table.plain import show
        from kedit.reports.table.show import show_sweep

        if name == "adhoc":
            show_cells([cell.directory(home) for cell in self.planned])
            log.info("as a page, with every answer and config: python -m kedit.reports.page %s", home)
            return
        made = present_cells(home)
        with showing(home):
            track(config, made)
        try:
            is_shown = show_sweep(name, home)
        except InputError as error:
            log.warning("not in the paper's layout: %s", error)
            is_shown = False
        if not is_shown:
            show(made)
        log.info("%s", write_page(home))
        said = OmegaConf.select(config, "table") or {}
        show_hints(home, list(said.get("look_at") or []), list(said.get("next") or []))

    def _check(self, config: DictConfig, folder: str) -> None:
        """Hydra would only warn of an exception."""
        try:
            check_general({name: config[name] for name in GENERAL if name in config})
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
        paper = OmegaConf.select(cfg, "table.paper")
        tags, whole = ["all cells", *([f"paper:{paper}"] if paper else [])], {"sweeps": sweep}
        tracker.start(directory=directory, name="all cells", group=sweep, tags=tags, config=whole, alone=False)
        tracker.finish(sweep_report(cells, made, directory))
