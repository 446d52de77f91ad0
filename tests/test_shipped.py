"""What comes with kedit already trained: used where training would give the same, and nowhere else."""

import json
from pathlib import Path
from shutil import copytree

import pytest
import torch
from conftest import run_kedit
from safetensors import safe_open

from kedit.common.paths import ROOT
from kedit.editors.training.artefact import trained_once
from kedit.editors.training.shipped import SHIPPED, shipped
from kedit.lm import LM

LTE = SHIPPED / "alignment" / "lte-world"
KEY = json.loads((LTE / "manifest.json").read_text(encoding="utf-8"))["key"]


def test_lte_on_the_world_trains_nothing(tmp_path: Path) -> None:
    """If this fails, something has changed that alignment depends on: python tests/ship_trained.py trains it anew."""
    given = ["editor=lte", "T=1", "dataset.limit=1", "eval.fluency_tokens=0", "eval.kinds=[reliability]"]
    done = run_kedit(tmp_path, *given, KEDIT_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert str(LTE) in (next((tmp_path / "runs").rglob("steps.jsonl"))).read_text(encoding="utf-8")
    assert not (tmp_path / "cache" / "alignment").exists()


def test_it_works_in_the_models_precision(lm: LM) -> None:
    lm.adapt("aligned", LTE)
    assert {p.dtype for name, p in lm.model.named_parameters() if "lora" in name} == {torch.float32}


@pytest.mark.parametrize(
    "other", [{"model": "sha256:0"}, {"seed": 1}, {"conversations": "0"}, {"tuner": KEY["tuner"] | {"lr": 1e-3}}]
)
def test_nothing_else_ever_takes_its_place(other: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    assert shipped("alignment", KEY) == LTE
    assert shipped("alignment", KEY | {"versions": ["another", "library"]}) == LTE
    assert shipped("hypernetwork", KEY) is None
    assert shipped("alignment", KEY | other) is None
    trained = trained_once("alignment", KEY | other, lambda new, _: (new / "x").touch(), cpu=True)
    assert (trained / "x").is_file()


def test_a_damaged_one_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copytree(LTE, tmp_path / "alignment" / "lte-world")
    monkeypatch.setenv("KEDIT_SHIPPED", str(tmp_path))
    assert shipped("alignment", KEY) is not None
    (tmp_path / "alignment" / "lte-world" / "adapter_model.safetensors").write_bytes(b"x")
    assert shipped("alignment", KEY) is None


def test_weights_that_come_with_the_package_are_few() -> None:
    weights = [*(ROOT / "kedit").rglob("*.safetensors")]
    assert sum(file.stat().st_size for file in weights) < 5e6
    assert (LTE / "adapter_model.safetensors").stat().st_size < 1e6
    for file in weights:
        with safe_open(file, "pt") as tensors:
            assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.float16}  # noqa: SIM118
    config = json.loads((LTE / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "kedit/world/weights", "no path of the machine that trained it"
