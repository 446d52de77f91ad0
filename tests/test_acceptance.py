"""The slower checks: `make acceptance`. Recipe W knows its world, and editing it scores as it should on three seeds."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import TESTS, run_kedit
from test_world import known, questions_of

from kedit import world
from kedit.lm import LM, load
from kedit.results.cells import find
from kedit.world import Recipe, World
from kedit.world.recipe import train

pytestmark = pytest.mark.acceptance

SEEDS = "101,102,103"  # settings were tuned on others
LOCALITY = ["same_subject", "other_people", "geo"]


@pytest.fixture(scope="module")
def w() -> LM:
    return world.load()


def test_training_again_gives_a_model_that_knows_as_much_as_the_shipped_one(w: LM, tmp_path: Path) -> None:
    """Not the same bits: they depend on the processor."""
    started = time.process_time()
    train(World(), Recipe(), tmp_path)
    sys.stdout.write(f"trained in {time.process_time() - started:.0f} CPU-seconds\n")
    again, asked = load(str(tmp_path)), questions_of(World())
    assert [p.shape for p in again.model.parameters()] == [p.shape for p in w.model.parameters()]
    for name, questions in asked.items():
        assert known(again, questions) >= known(w, questions) - (5 if name in ("alias", "one_hop") else 2)


def test_recipe_w_knows_its_world(w: LM) -> None:
    asked = questions_of(World())
    for seed in (101, 102, 103):
        probes = [p for case in world.cases(edits=100, seed=seed).cases[:100] for p in case.probes]
        asked[f"locality {seed}"] = [(p.prompt, p.answers[0]) for p in probes if p.kind == "locality"]
    shares = {name: known(w, questions) for name, questions in asked.items()}
    sys.stdout.write(f"{ {name: round(share, 1) for name, share in shares.items()} }\n")
    assert shares.pop("alias") >= 95
    assert shares.pop("one_hop") >= 75  # taught, and reported beside the edits
    assert min(shares.values()) >= 97


def scores(folder: Path) -> pd.DataFrame:
    """ES (mean of reliability and generality), LOC (mean over the three kinds of probe) and alias by editor and T."""
    lines = []
    for cell in find(folder / "runs"):
        tests = cell.rows[(cell.rows["when"] == "test") & (cell.rows["scoring"] == "forced")]
        for T, rows in tests.groupby("T"):
            kinds, groups = rows.groupby("kind")["token"].mean(), rows.groupby("group")["token"].mean()
            es, loc = (kinds["reliability"] + kinds["generality"]) / 2, groups[LOCALITY].mean()
            alias = groups["alias"]
            lines.append(
                {"editor": cell.meta["editor"], "T": T, "ES": 100 * es, "LOC": 100 * loc, "alias": 100 * alias}
            )
    table = pd.DataFrame(lines).groupby(["editor", "T"]).mean().round(1)
    sys.stdout.write(f"\n{table}\n")
    return table


def run(folder: Path, *arguments: str) -> pd.DataFrame:
    done = run_kedit(folder, "-m", f"seed={SEEDS}", "eval.fluency_tokens=0", *arguments)
    assert done.returncode == 0, done.stderr
    return scores(folder)


def test_single_edits(w: LM, tmp_path: Path) -> None:
    table = run(tmp_path, "editor=ft_m,kdpo", "setting=single", "dataset.limit=30")
    assert (table["ES"] >= 90).all()
    assert (table["LOC"] >= 97).all()


@pytest.mark.parametrize("options", [[], ["editor.lr=1e-3", "editor.layers=null"]], ids=["tuned", "by depth"])
def test_sequential_edits(w: LM, tmp_path: Path, options: list[str]) -> None:
    table = run(tmp_path, "editor=ft_m,kdpo", "setting.checkpoints=[10]", *options)
    assert (table["ES"].xs(10, level="T") >= 85).all()
    assert (table["LOC"].xs(10, level="T") >= 93).all()
    assert table.loc[("ft_m", 100), "ES"] >= 72
    assert table.loc[("ft_m", 100), "LOC"] >= 70
    assert table.loc[("kdpo", 100), "ES"] >= 58
    assert table.loc[("kdpo", 100), "LOC"] >= 72


def test_five_hundred_edits_ask_geography(w: LM, tmp_path: Path) -> None:
    done = run_kedit(tmp_path, "editor=ft_m", "T=500", "eval.fluency_tokens=0")
    assert done.returncode == 0, done.stderr
    assert "people are untouched by the edits" in done.stdout.replace("\n", " ")
    refused = run_kedit(tmp_path, "editor=ft_m", "T=521")
    assert "T=521 is more than the dataset's 520 cases" in refused.stderr


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_more_kills(seed: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", str(TESTS / "test_resume.py"), "-k", "random"]
    done = subprocess.run(command, env={**os.environ, "KEDIT_TEST_SEED": seed}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_larger_world_is_a_matter_of_parameters(tmp_path: Path) -> None:
    sizes = ["model.people=1000", "model.relations=6", "model.steps=30", "model.width=64"]
    done = run_kedit(tmp_path, *sizes, "T=20", "editor=ft_m", "eval.fluency_tokens=0")
    assert done.returncode == 0, done.stderr
