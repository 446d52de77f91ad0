"""What save=true and save=adapter write: a plain model, or an adapter that finds its base model from anywhere."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from kedit.cases import Edit
from kedit.common.errors import InputError
from kedit.common.paths import ROOT
from kedit.editors.finetune.lora import AdaLoRA, LoRA
from kedit.editors.finetune.per_edit import FineTune
from kedit.lm import LM, load
from kedit.losses.cross_entropy import CrossEntropy
from kedit.run.cell import assemble

EDITS = [Edit("Lucy Kelden was born in", "Velport"), Edit("Nina works for", "Blue Bank")]
IDS = torch.tensor([[1, 2, 3, 4]])


def edited(path: str, adapter: LoRA, edits: Sequence[Edit] = EDITS) -> LM:
    lm = load(path)
    for edit in edits:
        FineTune(loss=CrossEntropy(), lr=1e-2, steps=2, parameters=None, adapter=adapter).edit(lm, [edit])
    return lm


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    "adapter",
    [
        LoRA(rank=4, alpha=8),
        LoRA(rank=4, alpha=8, merge=True),
        LoRA(rank=4, alpha=8, target_modules="all-linear"),
        AdaLoRA(rank=4, alpha=8, init_rank=6),
    ],
)
def test_an_edited_model_is_saved_whole_whatever_was_trained(small_dir: Path, tmp_path: Path, adapter: LoRA) -> None:
    adapter.reset()
    lm = edited(str(small_dir), adapter)
    before, names = logits(lm.model), list(lm.model.state_dict())
    assert not torch.allclose(before, logits(load(str(small_dir)).model), atol=1e-3)
    lm.save(tmp_path / "saved")
    assert torch.equal(logits(lm.model), before)
    assert list(lm.model.state_dict()) == names
    assert not list((tmp_path / "saved").glob("adapter*"))
    for again in (AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), load(str(tmp_path / "saved")).model):
        assert torch.allclose(logits(again), before, atol=1e-5)
    lm.restore()
    assert torch.equal(logits(lm.model), logits(load(str(small_dir)).model))


def test_an_adapter_is_found_with_its_base_model_from_any_folder(
    small_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_dir.parent)
    adapter = LoRA(rank=4, alpha=8, target_modules="all-linear")
    lm = edited(small_dir.name, adapter)
    lm.save("saved", adapter=True)
    saved = small_dir.parent / "saved"
    assert not (saved / "model.safetensors").exists()
    held = json.loads((saved / "adapter_config.json").read_text())
    assert held["base_model_name_or_path"] == str(small_dir)
    assert held["target_modules"] == sorted(held["target_modules"])  # the same file in every process
    assert len(held["target_modules"]) == 7
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.allclose(logits(AutoPeftModelForCausalLM.from_pretrained(saved)), logits(lm.model), atol=1e-5)
    onto = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(small_dir), str(saved))
    assert torch.allclose(logits(onto), logits(lm.model), atol=1e-5)
    with pytest.raises(InputError, match=f"a peft adapter of {small_dir}, not a model"):
        load(str(saved))


def test_an_adapter_of_a_hub_model_names_its_commit(small_dir: Path, tmp_path: Path) -> None:
    lm = load(str(small_dir))
    lm.model.config._name_or_path, lm.model.config._commit_hash = "org/model", "abc123"
    FineTune(loss=CrossEntropy(), lr=1e-2, steps=1, parameters=None, adapter=LoRA(rank=2, alpha=4)).edit(lm, EDITS[:1])
    lm.save(tmp_path / "saved", adapter=True)
    held = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert (held["base_model_name_or_path"], held["revision"]) == ("org/model", "abc123")


def test_without_an_adapter_none_is_saved(small_dir: Path, tmp_path: Path) -> None:
    lm = edited(str(small_dir), LoRA(rank=2, alpha=4), EDITS[:1])
    lm.restore()
    with pytest.raises(InputError, match="save=adapter: the edits left no adapter"):
        lm.save(tmp_path / "saved", adapter=True)
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (["editor=ft_m"], "this editor leaves no adapter"),
        (["editor=lora", "editor.adapter.merge=true"], "this editor leaves no adapter"),
        (["editor=lora", "setting=single"], "this setting restores the model"),
    ],
)
def test_save_adapter_is_refused_at_the_start_if_none_will_be_left(choices: list[str], said: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", [*choices, "save=adapter", "tracker=none"])
    with pytest.raises(InputError, match=said):
        assemble(cfg)
