"""Damaged files of a cell: the run recovers to the same rows, or one sentence names the file; other cells are shown."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import SHAPES
from made_cells import make_cell
from transformers import AutoModelForCausalLM

from kedit import world
from kedit.common.errors import InputError
from kedit.editors.finetune.per_edit import FineTune
from kedit.evaluation.evaluator import Evaluator
from kedit.lm import LM
from kedit.loop.journal import Journal
from kedit.loop.runner import experiment
from kedit.loop.settings import sequential
from kedit.losses.cross_entropy import CrossEntropy
from kedit.reports.cell_status import look
from kedit.results.cells import find
from kedit.results.integrity import fingerprint, write_record

CASES = world.cases(edits=4, limit=4, seed=3).cases
CONFIG = "T: 4\nseed: 0\nname: a cell\neditor:\n  lr: 0.001\n"
META = {"model": "m", "dataset": "d", "editor": "e", "setting": "sequential", "T": 4, "effective_T": 4, "seed": 0}
META |= {"order_seed": None, "overrides": "", "kinds": ["reliability", "locality"], "cases": 4}
META |= {"data": {"sha256": "a", "dropped": {}, "notes": []}, "versions": {"torch": "2"}, "files": {}}
META |= {"model_is": {"identity": "sha256:1", "dtype": "float32"}}


class Stops(FineTune):
    """Trains two steps an edit; the process is stopped in its third edit."""

    def __init__(self, after: int = 99):
        super().__init__(loss=CrossEntropy(), lr=1e-3, steps=2, layers=[2])
        self.left = after

    def edit(self, lm: LM, edits: object) -> object:  # type: ignore[override]
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().edit(lm, edits)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def small(_world_lm: LM) -> LM:
    """A random model, so small that a run of four edits takes a moment."""
    torch.manual_seed(0)
    return LM(AutoModelForCausalLM.from_config(deepcopy(SHAPES["llama"])), _world_lm.text.tokenizer)


def run(lm: LM, cell: Path, editor: FineTune, config: str = CONFIG) -> None:
    """The cell, as kedit.run.cell runs it."""
    lm.restore()
    evaluator = Evaluator(kinds=["reliability", "locality"], each_step=["reliability"])
    journal = Journal(cell, config, every_s=0.0)
    journal.check()
    if journal.finished:
        return
    with journal:
        journal.describe(META)
        experiment(lm, sequential(CASES, 4), editor, evaluator, journal=journal)
        journal.describe(META | {"seconds": {"edit": 1.0}})
        journal.finish()


@pytest.fixture(scope="module")
def stopped(small: LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cell whose run was stopped after its second edit."""
    cell = tmp_path_factory.mktemp("stopped") / "cell"
    with pytest.raises(KeyboardInterrupt):
        run(small, cell, Stops(after=2))
    return cell


@pytest.fixture(scope="module")
def straight(small: LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same cell, never stopped."""
    cell = tmp_path_factory.mktemp("straight") / "cell"
    run(small, cell, Stops())
    return cell


def flip(path: Path) -> None:
    """One bit in the middle, so that a text stays a text."""
    content = bytearray(path.read_bytes())
    at = next(i for i in range(len(content) // 2, len(content)) if chr(content[i]).isalnum() or len(content) < 20)
    content[at] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "garbage": lambda path: path.write_bytes(bytes(range(128, 256)) * 4),
    "half a line more": lambda path: path.write_bytes(path.read_bytes() + b'{"step": 3, "ca'),
    "null bytes": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}
FILES = ["rows.jsonl", "steps.jsonl", "traces.jsonl", "meta.json", "config.yaml", "status"]
STATE = ["commit.json", "2/model.safetensors", "2/editor.safetensors", "2/editor.json"]
ANOTHER = {("config.yaml", "flipped"), ("config.yaml", "cut off")}  # reads as another config, which is refused


@pytest.mark.parametrize("name", [*FILES, *(f"state/{name}" for name in STATE)])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cell_continues_to_the_same_rows(
    small: LM, stopped: Path, straight: Path, tmp_path: Path, name: str, damage: str
) -> None:
    cell = tmp_path / "cell"
    shutil.copytree(stopped, cell)
    DAMAGES[damage](cell / name)
    if (name, damage) in ANOTHER:
        with pytest.raises(InputError, match=rf"{cell}/{name}:? .*another config.*remove the directory"):
            run(small, cell, Stops())
        return
    run(small, cell, Stops())
    for same in ("rows.jsonl", "traces.jsonl"):
        assert (cell / same).read_text() == (straight / same).read_text()
    steps = [
        [json.loads(line)["loss"] for line in (path / "steps.jsonl").read_text().splitlines()[1:]]
        for path in (cell, straight)
    ]
    assert steps[0] == steps[1]
    assert (cell / "status").read_text() == "finished"


def test_what_is_whole_is_not_done_again(small: LM, stopped: Path, tmp_path: Path) -> None:
    for number, (name, expected) in enumerate({"": 2, "meta.json": 2, "status": 2, "rows.jsonl": 4}.items()):
        cell = tmp_path / str(number)
        shutil.copytree(stopped, cell)
        if name:
            DAMAGES["garbage"](cell / name)
        editor = Stops()
        run(small, cell, editor)
        assert 99 - editor.left == expected, name


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_finished_cell_that_is_damaged_is_named_and_left_out(
    small: LM, straight: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    good, bad = (tmp_path / "sweep" / "m" / "d" / editor / "sequential-T4" / "seed0" for editor in ("good", "bad"))
    for cell in (good, bad):
        shutil.copytree(straight, cell)
    DAMAGES[damage](bad / name)
    harmless = (name in ("status", "manifest.json") and damage == "deleted") or name == "status"
    with caplog.at_level(logging.WARNING):
        shown = find(tmp_path / "sweep")
        _ = [cell.traces for cell in shown]
    assert good in {cell.directory for cell in shown}
    if harmless:
        assert bad in {cell.directory for cell in shown}
        run(small, bad, Stops())
        assert (bad / "status").read_text() == "finished"
        return
    [warning] = [record.getMessage() for record in caplog.records]
    assert str(bad / name) in warning
    assert f"remove {bad} and run it again" in warning
    assert "\n" not in warning
    assert look(tmp_path / "sweep")[1].state == "done"
    if name == "config.yaml" and (name, damage) not in ANOTHER:
        run(small, bad, Stops())  # it is known what stood there
        assert len(find(tmp_path / "sweep")) == 2
        return
    with pytest.raises(InputError, match=rf"{bad}/{name}"):
        run(small, bad, Stops())


def test_a_file_that_is_shorter_than_committed_is_not_filled_up(small: LM, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "cell")
    DAMAGES["cut off"](tmp_path / "cell" / "rows.jsonl")
    run(small, tmp_path / "cell", Stops())
    assert b"\0" not in (tmp_path / "cell" / "rows.jsonl").read_bytes()


def test_a_damaged_config_of_another_command_is_refused(small: LM, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "cell")
    (tmp_path / "cell" / "config.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"config.yaml is damaged .*another config"):
        run(small, tmp_path / "cell", Stops(), CONFIG.replace("0.001", "0.002"))


def test_damaged_meta_of_other_data_is_refused(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "cell")
    (tmp_path / "cell" / "meta.json").unlink()
    with (
        pytest.raises(InputError, match=r"meta.json is damaged .*with other data"),
        Journal(tmp_path / "cell", CONFIG) as j,
    ):
        j.describe(META | {"data": {"sha256": "b"}})


# --- the commands that show ------------------------------------------------------------------------------------------


SCORES = {"reliability": [1.0, 0.5], "locality": [1.0, 1.0]}


@pytest.fixture(scope="module", params=["recorded", "not recorded"])
def sweep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good cell among one for each kind of damage, cells that have no test, and a damaged list of cells; the damage
    is found by what the run recorded, or (an older kedit recorded nothing) when the file is read."""
    runs = tmp_path_factory.mktemp("shown") / "runs"
    good = make_cell(runs / "sweep", SCORES, editor="ft_m", T=2).directory
    damaged = [name for name in FILES if name not in ("traces.jsonl", "status")]
    for i, (name, damage) in enumerate((name, damage) for name in damaged for damage in DAMAGES):
        bad = make_cell(runs / "sweep", SCORES, editor=f"bad{i}", T=2).directory
        if request.param == "recorded":
            write_record(bad, "manifest.json", {"files": {name: fingerprint(bad / name) for name in damaged}})
        elif damage == "flipped":
            continue
        DAMAGES[damage](bad / name)
    first = (good / "rows.jsonl").read_text().splitlines(keepends=True)[0]
    for editor, rows in {"begun": "", "unedited": first, "half": first[:20]}.items():
        cell = make_cell(runs / "sweep", SCORES, editor=editor, T=2).directory
        (cell / "rows.jsonl").write_text(rows)
        (cell / "status").write_text("running")
    (runs / "sweep" / "cells.json").write_text("[{")
    return runs


@pytest.mark.parametrize("command", ["table", "plot", "status"])
def test_one_bad_cell_never_hides_the_others(sweep: Path, command: str) -> None:
    env = {**os.environ, "KEDIT_RUNS": str(sweep), "KEDIT_CACHE": str(sweep / "cache"), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", f"kedit.{command}", "sweep"], env=env, cwd=sweep, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    assert {"table": "ft_m", "plot": "retention.png", "status": "ft_m"}[command] in done.stdout
    assert done.returncode == (1 if command == "status" else 0)
    if command != "status":
        lines = done.stderr.splitlines()
        assert all(line.startswith("left out: ") and "remove" in line for line in lines[:-1])
        assert lines[-1].startswith("3 of ")
        assert "cells have no test yet" in lines[-1]
