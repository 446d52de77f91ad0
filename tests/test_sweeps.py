"""Every table of the papers as a sweep: its grid composes, joins the printed numbers, and survives failures."""

import inspect
import json
import pickle
import random
import re
import subprocess
import venv
from collections.abc import Callable, Iterator
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import TESTS, Done
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from kedit.common.paths import ROOT
from kedit.loop import settings
from kedit.papers import KEYS, printed
from kedit.run import main
from kedit.run.sweep import jobs, left_out, outside, present

Kedit = Callable[..., Done]
TABLES = sorted(path.stem for path in (ROOT / "sweeps").glob("*_table*.yaml"))
NUMBERS = {
    "kdpo": {1, 2, 3, 5, 6},
    "ft_editing": set(range(2, 10)),
    "kedas": {*range(4, 10), 13, *range(16, 20)},
    "overtone": set(range(1, 6)),
}
BENCHMARKS = ("kdpo_table3", "kedas_table8")  # columns that lm-eval would fill
WORLD = ["model=world", "dataset=world"]
TINY = [*WORLD, "model.people=20", "model.steps=2", "model.width=32", "model.mlp=32", "eval.fluency_tokens=20"]


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


@cache
def definition(sweep: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "sweeps" / f"{sweep}.yaml").read_text())


def axes(sweep: str) -> dict[str, list[str]]:
    """The whole grid, of editors that do not exist too."""
    texts = {axis: str(text) for axis, text in definition(sweep)["hydra"]["sweeper"]["params"].items()}
    names = {axis: text.removeprefix("${kedit.present:").rstrip("}").split(",") for axis, text in texts.items()}
    groups = [axis for axis, text in texts.items() if text.startswith("${")]
    return {axis: [part.strip() for part in parts[axis in groups :]] for axis, parts in names.items()}


def master(*given: str) -> DictConfig:
    """What a multirun's command line gives its sweeper."""
    config = compose("config", [override for override in given if "," not in override], return_hydra_config=True)
    OmegaConf.set_readonly(config, False)
    config.hydra.overrides.task = list(given)
    return config


def grid(*given: str) -> list[DictConfig]:
    """A multirun's cells, composed."""
    return [compose("config", job, return_hydra_config=True) for job in jobs(master(*given))]


def test_there_is_a_sweep_for_every_table_of_results() -> None:
    assert {f"{paper}_table{n}" for paper, numbers in NUMBERS.items() for n in numbers} == set(TABLES)


@pytest.mark.parametrize("sweep", TABLES)
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.acceptance)], ids=["choices", "cells"])
def test_every_sweep_composes(sweep: str, whole: bool) -> None:
    """Each choice of its axes, and all its cells."""
    wanted = axes(sweep)
    if not all(set(wanted[group]) & there(group) for group in ("editor", "dataset")):
        with pytest.raises(MissingConfigException):
            grid(f"sweeps={sweep}")
        return
    points = [dict(override.split("=", 1) for override in job) for job in jobs(master(f"sweeps={sweep}"))]
    assert len(points) == prod(len(set(names) & there(axis) or names) for axis, names in wanted.items())
    met: set[tuple[str, str]] = set()
    for point in points:
        if whole or not met >= set(point.items()):
            met |= set(point.items())
            cfg = compose("config", [f"{axis}={value}" for axis, value in point.items()], return_hydra_config=True)
            assert cfg.setting.get("short", "cap") == "cap"
            assert {axis: str(cfg.hydra.runtime.choices.get(axis, cfg.get(axis))) for axis in wanted} == {
                axis: point[axis] for axis in wanted
            }


def there(group: str) -> set[str]:
    return {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}


@pytest.mark.parametrize("sweep", TABLES)
def test_a_sweeps_layout_joins_the_printed_table(sweep: str) -> None:
    table, wanted = definition(sweep)["table"], axes(sweep)
    assert f"{table['paper']}_table{table['number']}" == sweep
    frame = printed(table["paper"], table["number"])
    laid = [*table["rows"], *table["columns"]]
    assert set(laid) <= set(KEYS)
    assert not frame.duplicated(
        [*laid, "setting", "T"] if "metric" in laid else [*laid, "setting", "T", "metric"]
    ).any()
    varying = {key for key in KEYS if frame[key].dropna().replace("", pd.NA).nunique() > 1}
    assert varying - set(laid) <= {"setting", "T"}  # T follows from the dataset or is a column; blocks of 1 are single
    same_as = table.get("same_as", {})
    for key in ("model", "editor", "dataset"):
        ours = {same_as.get(name, name) if key == "editor" else name for name in wanted[key]}
        theirs = {name for name in frame[key].dropna() if name not in ("", "none", "average")}
        if key == "dataset" and (sweep in BENCHMARKS or not theirs):
            continue
        assert ours == theirs, key


@pytest.mark.parametrize("sweep", TABLES)
def test_what_a_sweep_leaves_out_is_what_its_paper_leaves_empty(sweep: str) -> None:
    """Of a grid's combinations, those are run that the paper has a number for."""
    if sweep in BENCHMARKS:
        return
    table, wanted = definition(sweep)["table"], axes(sweep)
    frame = printed(table["paper"], table["number"]).dropna(subset=["value"])
    keys = [key for key in ("model", "dataset", "editor") if frame[key].nunique() > 1]
    keys += ["setting"] if "setting" in wanted else []
    frame = frame[frame["dataset"] != "average"] if "dataset" in keys else frame
    has = set(map(tuple, frame[keys].to_numpy()))
    same_as = {ours: theirs for ours, theirs in table.get("same_as", {}).items() if ours in wanted["editor"]}
    cfg = OmegaConf.create({"table": table, "T": 1})
    for cell in pd.MultiIndex.from_product([wanted[key] for key in keys], names=keys):
        names = {"model": "", "dataset": "", "editor": "", "setting": ""} | dict(zip(keys, cell, strict=True))
        names |= {key: values[0] for key, values in wanted.items() if key in names and len(values) == 1}
        theirs = tuple(
            same_as.get(name, name) if key == "editor" else name for key, name in zip(keys, cell, strict=True)
        )
        assert outside(cfg, names) != (theirs in has), names


def test_numbers_of_one_paper_reach_its_cells_only() -> None:
    wikibio = ["dataset=wikibio", "model=llama2-7b", "editor=kdpo"]
    [cell] = grid("sweeps=kdpo_table1", *wikibio)
    assert (cell.dataset.dedup, cell.dataset.parse.first_locality_only) == ("odd_toggle_last", True)
    [adhoc] = grid("sweeps=adhoc", *wikibio)
    assert (adhoc.dataset.dedup, adhoc.dataset.parse.first_locality_only) == ("none", False)
    [over] = grid("sweeps=kdpo_table1", *wikibio, "dataset.dedup=first")
    assert over.dataset.dedup == "first"
    assert [cell.T for cell in grid("sweeps=kedas_table5", *WORLD, "editor=lora")] == [1, "all"]
    [single] = grid("sweeps=ft_editing_table9", "editor=ft")
    assert (single.dataset.limit, Path(single.dataset.path).name) == (7500, "counterfact.json")
    [merged] = grid("sweeps=kdpo_table5", "editor=adalora_released", "dataset=zsre", "T=100")
    assert merged.editor.adapter.merge
    [setting] = grid("sweeps=kdpo_table6", *WORLD, "editor=kdpo", "T=5", "setting=blocks")
    assert setting.setting["_target_"] == "kedit.loop.settings.blocks"


def test_an_option_that_only_the_sweeps_own_choices_have_can_be_given() -> None:
    """Hydra composes a sweep without its axes first: the yaml's choices stand in for them, not the world."""
    given = ["sweeps=kdpo_table1", "model.dtype=bfloat16", "dataset.order_seed=3", "editor=ft_m,kdpo"]
    assert {cell.model.dtype for cell in grid(*given)} == {"bfloat16"}
    assert len(jobs(master(*given))) == 3 * 4 * 2


def test_every_setting_takes_what_the_sweeps_give() -> None:
    for setting in ("single", "sequential", "blocks", "incremental", "mass"):
        assert "short" in inspect.signature(getattr(settings, setting)).parameters


def test_absent_editors_are_left_out_in_one_line() -> None:
    assert present("editor", "never_heard_of", "ft_m", "kdpo") == "ft_m,kdpo"
    named = "lora mend rome serac ike eren wise alphaedit recipe lte kedas".split()  # KEDAS, Table 18
    absent = [name for name in named if not (ROOT / "conf/editor" / f"{name}.yaml").exists()]
    said = [f"left out, conf/editor does not have them yet: {', '.join(absent)}"] if absent else []
    assert left_out(master("sweeps=kedas_table18", "model=world")) == said
    assert left_out(master("sweeps=kedas_table18", "editor=ft_m,kdpo")) == []


def cells(folder: Path) -> list[dict[str, Any]]:
    [path] = (folder / "runs").rglob("cells.json")
    return json.loads(path.read_text())


def test_the_command_line_replaces_axes_and_a_failing_cell_stops_no_other(kedit: Kedit, tmp_path: Path) -> None:
    """Those of T=1 cannot be; the others run, once, and the table is shown."""
    done = kedit("sweeps=kdpo_table6", *TINY, "T=1,2", "seed=101,102")
    assert done.returncode == 1
    asked = {(editor, T, seed) for editor in ("dpo", "kdpo") for T in (1, 2) for seed in (101, 102)}
    assert {(cell["editor"], cell["T"], cell["seed"]) for cell in cells(tmp_path)} == asked
    assert done.stdout.count("tests only the first of 20 cases") == 4
    assert "4 of 8 cells did not finish: python -m kedit.status kdpo_table6" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "KDPO, Table 6: ours" in done.stdout
    ran = sorted((tmp_path / "runs").rglob("rows.jsonl"))
    written = [path.stat().st_mtime_ns for path in ran]
    assert len(ran) == 4
    again = kedit("sweeps=kdpo_table6", *TINY, "T=2", "seed=101,102,103", "editor=kdpo,dpo")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished before") == 4
    assert [path.stat().st_mtime_ns for path in ran] == written
    assert len(cells(tmp_path)) == 10
    assert not any("short" in cell["directory"] for cell in cells(tmp_path))


def test_a_cell_that_fails_at_work_leaves_its_error(kedit: Kedit, tmp_path: Path) -> None:
    given = ["T=2", "editor=lora", "editor.adapter.target_modules=[nope],[q_proj]", "table.number=7"]
    done = kedit("sweeps=kdpo_table6", *TINY, *given)
    assert done.returncode == 1
    homes = [tmp_path / "runs" / "kdpo_table6" / cell["directory"] for cell in cells(tmp_path)]
    [bad] = [home for home in homes if (home / "error").exists()]
    [good] = [home for home in homes if (home / "status").read_text() == "finished"]
    assert (bad / "error").read_text().startswith("editor.adapter does not fit (")
    assert good != bad


def test_a_cell_that_is_refused_stops_no_other_and_leaves_nothing(kedit: Kedit, tmp_path: Path) -> None:
    done = kedit("-m", *TINY, "T=2,0", "editor=ft_m", "editor.layers=[3],[9]")
    assert done.returncode == 1
    assert "T=0: give a whole number of at least 1 or all" in done.stdout
    assert "editor.layers=[9]: the model has layers 0 to 3; choose from these" in done.stdout
    assert "3 of 4 cells did not finish" in done.stderr
    assert len(list((tmp_path / "runs").rglob("rows.jsonl"))) == 1


def test_a_grid_without_a_name_is_written_down_too(kedit: Kedit, tmp_path: Path) -> None:
    done = kedit("-m", *TINY, "T=2", "editor=ft_m", "seed=1,2")
    assert done.returncode == 0, done.stderr
    assert "Callback" not in done.stderr
    assert [(cell["editor"], cell["seed"]) for cell in cells(tmp_path)] == [("ft_m", 1), ("ft_m", 2)]
    assert "(unedited)" in done.stdout


LAUNCHED = ["hydra/launcher=process", *TINY, "T=2,1000", "editor=ft_m", "seed=1,2"]  # a T of 1000 is refused


@pytest.mark.parametrize("sweep", ["adhoc", "named"])
def test_cells_in_processes_of_their_own_end_with_a_table_too(kedit: Kedit, tmp_path: Path, sweep: str) -> None:
    named = ["sweeps=mine"] if sweep == "named" else []
    (tmp_path / "conf" / "sweeps").mkdir(parents=True)
    (tmp_path / "conf" / "sweeps" / "mine.yaml").write_text("# @package _global_\nhydra:\n  mode: MULTIRUN\n")
    given = ["-m", "--config-dir", tmp_path / "conf", *named, *LAUNCHED]
    done = kedit(*given, PYTHONPATH=str(TESTS / "plugins"))
    assert done.returncode == 1
    assert "(unedited)" in done.stdout
    assert "2 of 4 cells did not finish" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    if sweep == "adhoc":
        return
    again = kedit(*[word for word in given if word != "T=2,1000"], "T=2", PYTHONPATH=str(TESTS / "plugins"))
    assert (again.returncode, again.stdout.count("finished before")) == (0, 2)


def test_the_task_is_sent_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(main.cell)) is main.cell


def test_a_finished_cell_that_this_command_cannot_use_is_counted(kedit: Kedit, tmp_path: Path) -> None:
    """One has another config, one is damaged, one is as it was left."""
    given = ["-m", *TINY, "T=2", "editor=ft_m", "seed=1,2,3"]
    assert kedit(*given).returncode == 0
    config, rows = (sorted((tmp_path / "runs").rglob(name))[i] for i, name in enumerate(("config.yaml", "rows.jsonl")))
    config.write_text(config.read_text().replace("lr: 0.0005", "lr: 0.0006"))
    rows.write_bytes(rows.read_bytes()[:-1])
    done = kedit(*given)
    assert done.returncode == 1
    assert "2 of 3 cells did not finish" in done.stderr
    assert f"left out: {rows} is damaged" in done.stdout
    assert "(unedited)" in done.stdout


def test_a_table_that_cannot_be_made_costs_nothing(kedit: Kedit, tmp_path: Path) -> None:
    """Here because a folder stands where a file should be written: no bad input, and not expected."""
    sweep = tmp_path / "runs" / "kdpo_table6"
    (sweep / "table.md").mkdir(parents=True)
    done = kedit("sweeps=kdpo_table6", *TINY, "T=1,2", "editor=kdpo", "seed=101")
    assert done.returncode == 1
    assert "1 of 2 cells did not finish" in done.stderr
    assert "the results could not be shown; python -m kedit.table" in done.stdout
    alone = tmp_path / "runs/adhoc/world/world/ft_m/sequential-T2/seed0" / ",".join(sorted(TINY[2:]))
    (alone / "table.md").mkdir(parents=True)
    done = kedit(*TINY, "T=2", "editor=ft_m")
    assert done.returncode == 0, done.stderr
    assert "could not be shown" in done.stdout


# --- wandb's own sweeps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wandb_grid", "wandb_bayes"])
def test_a_line_of_wandbs_is_a_cell_of_ours(name: str) -> None:
    """wandb's own expansion of the file's command, parsed and composed by Hydra."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    file = yaml.safe_load((ROOT / "sweeps" / f"{name}.yaml").read_text())
    assert file["command"] == ["${env}", "${interpreter}", "-m", "${program}", "${args_no_hyphens}"]
    assert file["program"] == "kedit.run"
    rng = random.Random(0)
    for _ in range(10):
        drawn = {parameter: {"value": draw(how, rng)} for parameter, how in file["parameters"].items()}
        overrides = create_sweep_command_args({"args": drawn})["args_no_hyphens"]
        cfg = compose("config", overrides)
        for parameter, value in (
            (p, v["value"]) for p, v in drawn.items() if "/" not in p and p not in ("editor", "setting")
        ):
            assert OmegaConf.select(cfg, parameter) == value
    assert "," not in " ".join(overrides)


@pytest.mark.parametrize("name", ["wandb_grid", "wandb_bayes"])
def test_wandb_takes_the_names_of_parameters(name: str) -> None:
    """As the schema of wandb's package `sweeps` has them: no slash, so no choice of a group within a group."""
    names = yaml.safe_load((ROOT / "sweeps" / f"{name}.yaml").read_text())["parameters"]
    assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", parameter) for parameter in names)


SCHEMA = """
import json, pathlib, sys, jsonschema, sweeps, yaml
[path] = pathlib.Path(sweeps.__file__).parent.rglob("schema.json")
for name in sys.argv[1:]:
    jsonschema.Draft7Validator(json.loads(path.read_text())).validate(yaml.safe_load(open(name)))
"""


@pytest.mark.acceptance
def test_wandbs_own_schema_takes_both_files(tmp_path: Path) -> None:
    """In an environment of its own, from the package index."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "sweeps", "jsonschema", "pyyaml"], check=True)
    files = [ROOT / "sweeps" / f"wandb_{name}.yaml" for name in ("grid", "bayes")]
    done = subprocess.run([python, "-c", SCHEMA, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def draw(how: dict[str, Any], rng: random.Random) -> Any:
    """As wandb draws a parameter's value."""
    if "value" in how:
        return how["value"]
    if "values" in how:
        return rng.choice(how["values"])
    if how["distribution"] == "int_uniform":
        return rng.randint(how["min"], how["max"])
    assert how["distribution"] == "log_uniform_values"
    return rng.uniform(how["min"], how["max"])
