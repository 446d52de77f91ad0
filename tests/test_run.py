"""The command line as a user meets it: what is refused, what is said, what is left behind; and the README's Python."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import TESTS
from omegaconf import OmegaConf

from kedit import world
from kedit.cases import Edit
from kedit.editors import Editor
from kedit.lm import LM
from kedit.run.cell import run
from kedit.run.composition import composed
from kedit.run.numbers import number_files

Kedit = Callable[..., subprocess.CompletedProcess[str]]
TINY = ["model.people=20", "model.steps=2", "model.width=32", "model.mlp=32"]  # a world for what needs no knowledge
QUICK = [*TINY, "T=3", "eval.fluency_tokens=20"]
GOOD = {"subject": "s", "prompt": "s is", "target_new": "t", "locality": {}}


class NeedsSubject(Editor):
    """An editor of the locate-then-edit kind, as far as its input goes."""

    needs_subject = True

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        return {}


def file(tmp_path: Path, text: str) -> str:
    (tmp_path / "f.json").write_text(text)
    return str(tmp_path / "f.json")


def no_tokenizer(tmp_path: Path) -> str:
    world.load().model.save_pretrained(tmp_path / "m")
    return str(tmp_path / "m")


LOCAL = ["model=local", "model.path=/nowhere"]
FILE = [*LOCAL, "dataset=zsre", "T=1"]
NEEDS = [*FILE, "editor=needs_subject"]
BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "missing file": (lambda p: [*FILE, "dataset.path=/nope.json"], "/nope.json: no such file"),
    "wrong json": (lambda p: [*FILE, f"dataset.path={file(p, '[{')}"], "not json"),
    "missing field": (lambda p: [*FILE, f"dataset.path={file(p, '[{}]')}"], "record 0: field 'prompt' is missing"),
    "empty target": (
        lambda p: [*FILE, f"dataset.path={file(p, json.dumps([GOOD | {'target_new': ''}]))}"],
        "the edit 's is' has an empty target",
    ),
    "unknown editor": (lambda p: ["editor=rnome"], "editor=rnome: no such choice; nearest is rome"),
    "unknown key": (lambda p: ["editor.lrr=1"], "nearest is editor.lr"),
    "T above the data": (lambda p: [*TINY, "T=1000"], "T=1000 is more than the dataset's 20 cases; lower T"),
    "T that is no number": (lambda p: [*TINY, "T=many"], "T=many: give a whole number of at least 1 or all"),
    "setting.short": (lambda p: [*TINY, "T=3", "setting.short=shrink"], "choose error or cap"),
    "model folder without tokenizer": (
        lambda p: [
            "model=local",
            f"model.path={no_tokenizer(p)}",
            "dataset=zsre",
            f"dataset.path={TESTS}/data/zsre.json",
            "T=3",
        ],
        "tokenizer",
    ),
    "no model folder": (lambda p: [*FILE, f"dataset.path={file(p, json.dumps([GOOD]))}"], "/nowhere: no model there"),
    "subject not in prompt": (
        lambda p: [*NEEDS, f"dataset.path={file(p, json.dumps([GOOD | {'subject': 'x'}]))}"],
        "the subject 'x' is not in the prompt 's is'",
    ),
    "loss with a dot": (lambda p: ["editor.loss=kdpo", *TINY], "a part is chosen with a slash: editor/loss=kdpo"),
    "evaluation switch": (lambda p: ["eval.aliases=all", *TINY], "eval.aliases=all: choose first or any"),
    "layer": (lambda p: [*QUICK, "editor.layers=[9]"], "the model has layers 0 to 3"),
}


AFTER_THE_CELL_IS_MADE = ("no model folder", "model folder without tokenizer")  # only loading the model tells


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_said_in_one_sentence(refusal: Callable[..., str], tmp_path: Path, name: str) -> None:
    arguments, said = BAD[name]
    own = tmp_path / "conf" / "editor" / "needs_subject.yaml"  # an editor of the user's own: one class and one yaml
    own.parent.mkdir(parents=True)
    own.write_text("_target_: test_run.NeedsSubject\n")
    text = refusal("--config-dir", tmp_path / "conf", *arguments(tmp_path))
    assert said in text
    assert "\n" not in text
    assert not list((tmp_path / "runs").rglob("status")) or name in AFTER_THE_CELL_IS_MADE


@pytest.mark.parametrize("arguments", [QUICK, ["-m", *QUICK, "seed=1,2"]], ids=["run", "multirun"])
def test_an_output_folder_whose_parent_is_a_file(kedit: Kedit, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "file").write_text("kept")
    done = kedit(*arguments, KEDIT_RUNS=str(tmp_path / "file" / "runs"))
    assert done.returncode == 1
    assert "set KEDIT_RUNS to a writable folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "kept"


def test_a_damaged_cache_is_said_and_mended(kedit: Kedit, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    first = kedit(*QUICK, KEDIT_CACHE=cache)
    assert first.returncode == 0, first.stderr
    [model] = (tmp_path / "cache").glob("world/*/model.safetensors")
    whole = model.read_bytes()
    model.write_bytes(whole[:1000])
    second = kedit(*QUICK, "seed=1", KEDIT_CACHE=cache)
    assert second.returncode == 0, second.stderr
    assert f"the cached world in {model.parent} is damaged and is built again" in second.stdout + second.stderr
    assert model.read_bytes() == whole


def test_a_finished_cell_is_left_alone_and_another_config_is_refused(kedit: Kedit, tmp_path: Path) -> None:
    first = kedit(*QUICK)
    assert first.returncode == 0, first.stderr
    [rows] = (tmp_path / "runs").rglob("rows.jsonl")
    written = rows.stat().st_mtime_ns
    again = kedit(*QUICK)
    assert again.returncode == 0
    assert "finished before" in again.stdout
    assert "(unedited)" in again.stdout
    assert rows.stat().st_mtime_ns == written
    config = rows.parent / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 5"))
    refused = kedit(*QUICK)
    assert refused.returncode == 1
    assert "holds a run with another config" in refused.stderr


def test_options_that_change_no_row_are_no_part_of_a_cell(kedit: Kedit, tmp_path: Path) -> None:
    assert kedit(*QUICK).returncode == 0
    assert "finished before" in kedit(*QUICK, "threads=2", "keep_state=true", "commit_every_s=1").stdout


@pytest.mark.parametrize("setting", ["single", "sequential", "blocks", "incremental", "mass"])
@pytest.mark.parametrize("editor", ["ft_m", "kdpo"])
def test_every_setting_on_real_records(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    small_dir: Path,
    setting: str,
    editor: str,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("KEDIT_RUNS", str(tmp_path / "runs"))
    names = {"model": "local", "dataset": "zsre", "editor": editor, "setting": setting}
    given = [f"{group}={name}" for group, name in names.items()] + ([] if setting == "single" else ["T=2"])
    given += [f"model.path={small_dir}", f"dataset.path={TESTS}/data/zsre.json", "dataset.limit=4", "tracker=none"]
    cfg = composed(given, return_hydra_config=True)
    files = number_files(cfg.hydra)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    home = run(cfg, names | {"sweeps": "adhoc", "overrides": ""}, files)
    T = 1 if setting == "single" else 2
    assert home == tmp_path / f"runs/adhoc/local/zsre/{editor}/{setting}-T{T}/seed0"
    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    assert len({row["case"] for row in rows if row["when"] == "test" and "case" in row}) == (
        4 if setting in ("single", "blocks") else 2
    )
    meta = json.loads((home / "meta.json").read_text())
    assert meta["model_is"]["identity"].startswith("sha256:")
    assert meta["effective_T"] == T
    assert (meta["numbers"], meta["untuned"]) == ({}, True)
    assert f"editor={editor} has no numbers for model=local" in (home / "run.log").read_text()
    assert (home / "status").read_text() == "finished"


def test_below_float32_the_noise_floor_is_told(kedit: Kedit, small_dir: Path) -> None:
    data = ["dataset=zsre", f"dataset.path={TESTS}/data/zsre.json", "T=2", "eval.fluency_tokens=0"]
    done = kedit("model=local", f"model.path={small_dir}", "model.dtype=bfloat16", *data)
    assert done.returncode == 0, done.stderr
    assert "bfloat16 agrees with itself on" in done.stdout
    assert "in bfloat16 the unedited model agrees with itself on" in done.stdout.replace("\n", " ")


def test_help_and_tables_need_no_model() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, kedit.run, kedit.table; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "False", done.stderr
    shown = subprocess.run([sys.executable, "-m", "kedit.run", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert re.search(r"^editor: .*ft_m, .*kdpo", shown.stdout, re.MULTILINE)


def test_the_wheel_carries_conf_sweeps_and_the_papers_numbers(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=TESTS.parent, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    assert len([*(tmp_path / "installed/kedit/papers").glob("*.csv")]) == 31
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    (tmp_path / "empty").mkdir()
    for arguments in (["--help"], ["--cfg", "job", "sweeps=quickstart"]):
        command = [sys.executable, "-m", "kedit.run", *arguments]
        done = subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "kedit" in done.stdout
    assert list((tmp_path / "empty").iterdir()) == []


def test_the_readmes_python(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (TESTS.parent / "README.md").read_text()
    [code] = re.findall(r"```python\n(from kedit import.*?)```", readme, re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    monkeypatch.setattr(world, "load", lambda: lm)
    names: dict[str, Any] = {}
    exec(code, names)
    table = names["table"]
    assert table["N"].tolist() == [10, 10]
    assert table["edit success"].iloc[1] > table["edit success"].iloc[0] + 30
