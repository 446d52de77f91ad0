"""One cell: build what the config names, run the loop, describe the result.

The only reader of configs; nothing below it sees OmegaConf or Hydra. Heavy imports wait until a cell really runs: a
finished one is recognised at once.
"""

import logging
import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.errors import CompactHydraException, HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from kedit.cases import check_subjects
from kedit.common.errors import InputError, disk_is_full, first_line
from kedit.common.text_files import write_text
from kedit.loop.journal import InMemoryJournal, Journal, ReadOnlyJournal
from kedit.reports.present import present_cells, showing
from kedit.results.cell_files import ERROR
from kedit.run.naming import BOOKKEEPING, GROUPS, cell_directory

log = logging.getLogger(__name__)

IS_WORKER = os.environ.get("RANK", "0") != "0"  # one of several processes that accelerate launched, and not the first


def run(cfg: DictConfig, names: Mapping[str, str]) -> Path:
    """Run a cell, continue it, or leave it alone when it is finished; returns its directory."""
    directory = cell_directory(Path(cfg.runs), names, cfg.T, cfg.seed)
    journal = Journal(directory, identity(cfg), every_s=cfg.commit_every_s, keep_state=cfg.keep_state)
    journal.check()
    if journal.finished:
        log.info("finished before: %s", directory)
        return directory
    parts = assemble(cfg)
    if IS_WORKER:
        logging.disable(logging.INFO)
        experiment_of(cfg, parts, load_model(cfg), ReadOnlyJournal(directory))
        return directory
    with journal, log_file(directory / "run.log"), error_file(directory):
        log.info("%s: %d steps", directory, len(parts.steps))
        compute(cfg, names, journal, parts)
    return directory


@dataclass
class Parts:
    """What a cell is made of, besides the model."""

    editor: Any
    evaluator: Any
    tracker: Any
    dataset: Any
    steps: Sequence[Any]


def assemble(cfg: DictConfig) -> Parts:
    """Everything that can be built and checked before a model is loaded and a directory made."""
    editor, evaluator, tracker = (instantiate(cfg[part], _convert_="all") for part in ("editor", "eval", "tracker"))
    dataset = instantiate(cfg.dataset, _convert_="all")(train=editor.needs_train)
    steps = list(instantiate(cfg.setting, _convert_="all")(dataset.cases, cfg.T))
    if editor.needs_subject:
        check_subjects(case for step in steps for case in step.edit)
    if evaluator.each_step and not editor.reports_steps:
        raise InputError(
            f"eval.each_step={list(evaluator.each_step)}: {type(editor).__name__} does not tell its optimiser steps; "
            "set eval.each_step=[], or choose an editor that trains edit by edit"
        )
    editor.prepare([edit for step in steps for case in step.edit for edit in case.edits])
    return Parts(editor, evaluator, tracker, dataset, steps)


def compute(cfg: DictConfig, names: Mapping[str, str], journal: Journal, parts: Parts) -> None:
    """The part that needs the model."""
    from kedit.loop.provenance import costs, describe, named_files
    from kedit.loop.tracker import Report
    from kedit.reports.dashboard import flat_config, report
    from kedit.results.cells import Cell

    started = time.perf_counter()
    lm = load_model(cfg)
    load_s = time.perf_counter() - started
    cell = {**names, "T": cfg.T, "seed": cfg.seed, "order_seed": cfg.dataset.get("order_seed")}
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    meta = cell | describe(lm, parts.dataset, parts.steps, parts.evaluator) | {"files": named_files(config)}
    journal.describe(meta)
    parts.tracker.start(
        directory=journal.directory,
        name=str(journal.directory.relative_to(Path(cfg.runs) / names["sweeps"])),
        group=names["sweeps"],
        tags=[f"{group}:{names[group]}" for group in GROUPS],
        config=flat_config(without(config, BOOKKEEPING), meta),
    )
    experiment_of(cfg, parts, lm, journal, parts.tracker)
    journal.describe(meta | costs(lm, journal.steps, len(journal.rows), load_s, time.perf_counter() - started))
    if cfg.save:
        lm.save(journal.directory / "model")
    shown = Report()
    with showing(journal.directory):
        [(_, table), *_] = present_cells(journal.directory)
        shown = report(Cell(journal.directory), table)
    parts.tracker.finish(shown)
    journal.finish()


def load_model(cfg: DictConfig) -> Any:
    """The pristine model; the cells of one command share it, and what it keeps of the layers below their edits."""
    import torch

    torch.set_num_threads(cfg.threads or int(os.environ.get("OMP_NUM_THREADS", 1)))
    lm = _loaded(OmegaConf.to_yaml(cfg.model, resolve=True))
    lm.restore()
    return lm


@lru_cache(maxsize=1)
def _loaded(model: str) -> Any:
    return instantiate(OmegaConf.create(model), _convert_="all")


def experiment_of(cfg: DictConfig, parts: Parts, lm: Any, journal: InMemoryJournal, tracker: Any = None) -> None:
    from kedit.loop.runner import experiment

    data = {"train": parts.dataset.train, "held_out": parts.dataset.held_out}
    experiment(
        lm,
        parts.steps,
        parts.editor,
        parts.evaluator,
        seed=cfg.seed,
        journal=journal,
        tracker=tracker,
        parallel=cfg.parallel,
        **data,
    )


def identity(cfg: DictConfig) -> str:
    """What a cell is: the resolved config without what changes no row."""
    whole: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return OmegaConf.to_yaml(without(whole, BOOKKEEPING))


def without(options: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in names}


@contextmanager
def one_sentence() -> Iterator[None]:
    """What the user can correct is said without a stack trace, also if it is found while instantiating."""
    try:
        yield
    except CompactHydraException:
        raise
    except InputError as error:
        raise CompactHydraException(str(error)) from error
    except Exception as error:
        if isinstance(error, InstantiationException) and isinstance(error.__cause__, InputError):
            raise CompactHydraException(str(error.__cause__)) from error
        if disk_is_full(error):
            raise CompactHydraException(
                f"the disk is full ({first_line(error)}); free some space, then the same command continues"
            ) from error
        raise


def message(error: Exception) -> str:
    """One line: what the user is told, or for a fault of the program its name and what it says."""
    expected = isinstance(error, HydraException | InputError)
    return str(error).strip().replace("\n", " ") if expected else f"{type(error).__name__}: {first_line(error)}"


@contextmanager
def error_file(cell: Path) -> Iterator[None]:
    """In a cell that this process holds: an error's message becomes the last line of the file `error`."""
    (cell / ERROR).unlink(missing_ok=True)  # of an attempt before
    try:
        with one_sentence():
            yield
    except Exception as error:
        expected = isinstance(error, HydraException | InputError)
        trace = "" if expected else "".join(traceback.format_tb(error.__traceback__))
        with suppress(OSError):  # of a full disk
            write_text(cell / ERROR, f"{trace}{message(error)}\n")
        raise


class LogFile(logging.FileHandler):
    """A log that a full disk does not stop, nor fill the terminal with."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    handler = LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
