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
from pathlib import Path
from typing import Any

from hydra.errors import CompactHydraException, HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from kedit.cases import check_subjects
from kedit.common.errors import InputError, disk_is_full, first_line
from kedit.common.text_files import write_text
from kedit.loop.in_memory_journal import InMemoryJournal, ReadOnlyJournal
from kedit.loop.journal import Journal
from kedit.reports.present import present_cells, showing
from kedit.results.cell_files import ERROR
from kedit.run.naming import BOOKKEEPING, GROUPS, REFERRED, cell_directory
from kedit.run.numbers import Files, described, said
from kedit.run.options import check, check_general, check_layers, layer_count
from kedit.run.preflight import check_inputs
from kedit.run.references import resolved
from kedit.run.rules import shown

log = logging.getLogger(__name__)

_LAST_MODEL: dict[str, Any] = {}  # the model of this process's last cell, by its options: the next one may use it
IS_WORKER = os.environ.get("RANK", "0") != "0"  # one of several processes that accelerate launched, and not the first


def run(cfg: DictConfig, names: Mapping[str, str], files: Files | None = None, *, alone: bool = True) -> Path:
    """Run a cell, continue it, or leave it alone when it is finished; returns its directory.

    `files`: those of conf/hparams that its config is made of (None: not known). `alone`: it is no cell of a grid.
    """
    config = resolved(cfg, names)
    check_general(config)
    directory = cell_directory(Path(cfg.runs), names, cfg.T, cfg.seed)
    journal = Journal(directory, identity(config), every_s=cfg.commit_every_s, keep_state=cfg.keep_state)
    journal.check()
    if journal.finished:
        log.info("finished before: %s", directory)
        return directory
    check(config)
    n_layers = layer_count(config["model"])
    if n_layers is not None:
        check_layers(config, n_layers)
    parts = assemble(cfg)
    numbers = {} if files is None else described(files, config)
    if IS_WORKER:
        logging.disable(logging.INFO)
    started = time.perf_counter()
    lm = checked_model(cfg, parts)
    if IS_WORKER:
        experiment_of(cfg, parts, lm, ReadOnlyJournal(directory))
        return directory
    with journal, log_file(directory / "run.log"), error_file(directory):
        log.info("%s: %d steps", directory, len(parts.steps))
        for line in said(names, numbers) if numbers else ():
            log.info("%s", line)
        compute(cfg, {**names, **numbers}, journal, parts, lm, started, alone)
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
    check_inputs(cfg, editor)
    if cfg.save == "adapter" and not editor.keeps_adapter:
        raise InputError(
            "save=adapter: this editor leaves no adapter in the model; give save=true for the edited model"
        )
    dataset = instantiate(cfg.dataset, _convert_="all")(train=editor.needs_train)
    if editor.needs_locality_prompt:
        from kedit.data.dataset import hand_over

        dataset = hand_over(dataset)
    steps = list(instantiate(cfg.setting, _convert_="all")(dataset.cases, cfg.T))
    if cfg.save and steps and steps[-1].restore:
        raise InputError(
            f"save={shown(cfg.save)}: this setting restores the model after its last edit; choose setting=sequential"
        )
    from kedit.evaluation.measures.chosen import check_measured

    check_measured(evaluator.measures, [step.restore for step in steps if step.test])
    if editor.needs_subject:
        check_subjects((case for step in steps for case in step.edit), dataset.where)
    if evaluator.each_step and not editor.reports_steps:
        raise InputError(
            f"eval.each_step={list(evaluator.each_step)}: {type(editor).__name__} does not tell its optimiser steps; "
            "set eval.each_step=[], or choose an editor that trains edit by edit"
        )
    check_tests(steps, evaluator.kinds)
    if evaluator.judges:
        from kedit.loop.step_runner import times_asked

        evaluator.announce(times_asked(steps, evaluator))
    editor.prepare([edit for step in steps for case in step.edit for edit in case.edits])
    return Parts(editor, evaluator, tracker, dataset, steps)


def check_tests(steps: Sequence[Any], kinds: Sequence[Any]) -> None:
    """Raises InputError if no test would ask anything."""
    asked = {probe.kind for step in steps for case in step.test for probe in case.probes}
    if asked.isdisjoint(kinds):
        given = f"eval.kinds={list(kinds)} (fluency only with fluency tokens)"
        raise InputError(f"{given}: no test would ask anything; the dataset has {', '.join(sorted(asked))}")


def checked_model(cfg: DictConfig, parts: Parts) -> Any:
    """The model, once it can read what the cell edits and asks: a text that is too long is refused before the cell has
    a directory."""
    from kedit.loop.context_check import check_lengths

    if "path" in cfg.model and OmegaConf.to_yaml(cfg.model, resolve=True) not in _LAST_MODEL:
        from kedit.run.memory_fit import said as memory_said

        for line in memory_said(cfg.model.path, dict(cfg.model), parts.editor):
            log.info("%s", line)
    lm = load_model(cfg)
    check_lengths(lm, parts.steps, parts.evaluator, parts.dataset.where)
    return lm


def compute(
    cfg: DictConfig, names: Mapping[str, Any], journal: Journal, parts: Parts, lm: Any, started: float, alone: bool
) -> None:
    """The part that makes the cell's directory. `started`: when the model began to load (time.perf_counter)."""
    from kedit.loop.provenance import costs, describe, n_probes, named_files
    from kedit.loop.tracker import Report
    from kedit.reports.dashboard import flat_config, report
    from kedit.results.cells import Cell

    load_s = time.perf_counter() - started
    cell = {**names, "T": cfg.T, "seed": cfg.seed, "order_seed": cfg.dataset.get("order_seed")}
    whole: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    config = without(whole, REFERRED)
    meta = cell | describe(lm, parts.dataset, parts.steps, parts.evaluator) | {"files": named_files(config)}
    journal.describe(meta)
    parts.tracker.start(
        directory=journal.directory,
        name=str(journal.directory.relative_to(Path(cfg.runs) / names["sweeps"])),
        group=names["sweeps"],
        tags=tags_of(cell, OmegaConf.select(cfg, "table.paper")),
        config=flat_config(without(config, BOOKKEEPING), meta),
        alone=alone,
    )
    experiment_of(cfg, parts, lm, journal, parts.tracker)
    journal.describe(meta | costs(journal.steps, n_probes(journal.rows), load_s, time.perf_counter() - started))
    if cfg.save:
        lm.save(journal.directory / "model", adapter=cfg.save == "adapter")
    results = Report()
    with showing(journal.directory):
        [(_, table), *_] = present_cells(journal.directory)
        results = report(Cell(journal.directory), table)
    parts.tracker.finish(results)
    journal.finish()


def tags_of(cell: Mapping[str, Any], paper: str | None) -> list[str]:
    """What runs of a tracker are filtered by: a cell's choices, T and seed, and the paper whose table it fills."""
    return [f"{name}:{cell[name]}" for name in (*GROUPS, "T", "seed")] + ([f"paper:{paper}"] if paper else [])


def load_model(cfg: DictConfig) -> Any:
    """The pristine model; the cells of one command share it, and what it keeps of the layers below their edits."""
    import torch

    from kedit.lm.batching import free_memory
    from kedit.lm.peak_memory import reset_peak_memory

    torch.set_num_threads(cfg.threads or int(os.environ.get("OMP_NUM_THREADS", 1)))
    options = OmegaConf.to_yaml(cfg.model, resolve=True)
    if options not in _LAST_MODEL or not cfg.get("keep_model", True):
        _LAST_MODEL.clear()  # two models need not fit into memory
        free_memory()
    reset_peak_memory()
    if options not in _LAST_MODEL:
        _LAST_MODEL[options] = instantiate(OmegaConf.create(options), _convert_="all")
    _LAST_MODEL[options].restore()
    return _LAST_MODEL[options]


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


def identity(config: Mapping[str, Any]) -> str:
    """What a cell is: the resolved config without what changes no row."""
    return OmegaConf.to_yaml(without(config, (*BOOKKEEPING, *REFERRED)))


def without(options: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in names}


@contextmanager
def one_sentence() -> Iterator[None]:
    """What the user can correct is said in its own sentence, without a stack trace, however deep in the config the part
    is that Hydra was instantiating."""
    try:
        yield
    except Exception as error:
        if known := _input_error(error):
            raise CompactHydraException(str(known)) from error
        if isinstance(error, CompactHydraException):
            raise
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported until a model is needed
            raise CompactHydraException(
                f"out of memory in one edit or text ({first_line(error)}); give model.dtype=bfloat16, a larger GPU or "
                "several (model.device_map=auto), or an editor that needs less; the same command continues"
            ) from error
        if disk_is_full(error):
            raise CompactHydraException(
                f"the disk is full ({first_line(error)}); free some space, then the same command continues"
            ) from error
        raise


def _input_error(error: BaseException | None) -> InputError | None:
    """The InputError at the end of a chain of Hydra's errors."""
    while isinstance(error, InstantiationException):
        error = error.__cause__
    return error if isinstance(error, InputError) else None


def message(error: Exception) -> str:
    """One line: what the user is told, or for a fault of the program its name and what it says."""
    expected = isinstance(error, HydraException | InputError)
    return str(error).strip().replace("\n", " ") if expected else f"{type(error).__name__}: {first_line(error)}"


@contextmanager
def error_file(cell: Path) -> Iterator[None]:
    """In a cell that this process holds: an error's message becomes the last line of the file `error`."""
    (cell / ERROR).unlink(missing_ok=True)  # an earlier attempt's
    try:
        with one_sentence():
            yield
    except Exception as error:
        expected = isinstance(error, HydraException | InputError)
        trace = "" if expected else "".join(traceback.format_tb(error.__traceback__))
        with suppress(OSError):  # the disk may be full
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
