"""Saved adapters: each reads the prompts whose Route names it, in one batch with prompts that none reads."""

from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model

from kedit.common.errors import InputError
from kedit.lm import LM, Route

PROMPTS = ["Lucy Kelden was born in", "Nina Norro works for the old", "Paul Torsen is married to"]
ANSWERS = ["Redbrook", "Blue Bank", "Anna Wilker"]


def saved(lm: LM, folder: Path, config: LoraConfig | IA3Config | None = None, seed: int = 0) -> Path:
    """A random adapter for this model, in peft's form."""
    torch.manual_seed(seed)
    targets = ["c_attn"] if "GPT2" in type(lm.model).__name__ else ["q_proj", "v_proj"]
    adapted = get_peft_model(deepcopy(lm.model), config or LoraConfig(r=4, target_modules=targets))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.save_pretrained(folder)
    return folder


def logprobs(lm: LM, adapters: list[str | None]) -> list[list[float]]:
    routes = [Route(prompt, adapter) for prompt, adapter in zip(PROMPTS, adapters, strict=True)]
    return [scored.logprob for scored in lm.answer(routes, ANSWERS)]


def test_rows_of_a_batch_are_read_as_if_each_were_alone(shaped: LM, tmp_path: Path) -> None:
    bare = logprobs(shaped, [None] * 3)
    folders = {name: saved(shaped, tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b"))}
    for name, folder in folders.items():
        shaped.adapt(name, folder)
    assert logprobs(shaped, [None] * 3) == bare
    mixed = logprobs(shaped, ["a", None, "b"])
    alone = [logprobs(shaped, [name] * 3) for name in ("a", "b")]
    assert mixed[1] == pytest.approx(bare[1], abs=1e-5)
    assert mixed[0] == pytest.approx(alone[0][0], abs=1e-5)
    assert mixed[2] == pytest.approx(alone[1][2], abs=1e-5)
    assert abs(mixed[0][0] - bare[0][0]) > 1e-3
    assert abs(alone[0][2][0] - alone[1][2][0]) > 1e-3


def test_a_continuation_is_read_with_its_prompts_adapter(lm: LM, tmp_path: Path) -> None:
    lm.adapt("a", saved(lm, tmp_path))
    bare, adapted = (lm.generate([Route(p, name) for p in PROMPTS], 5) for name in (None, "a"))
    assert [said.text for said in bare] != [said.text for said in adapted]
    mixed = lm.generate([Route(p, name) for p, name in zip(PROMPTS, [None, "a", None], strict=True)], 5)
    assert mixed == [bare[0], adapted[1], bare[2]]
    said = lm.score_greedy_continuation([Route(PROMPTS[1], "a")], ANSWERS[1:2])
    assert said[0].gold == said[0].pred


def test_equal_questions_with_another_adapter_are_other_questions(lm: LM, tmp_path: Path) -> None:
    lm.adapt("a", saved(lm, tmp_path))
    bare, adapted = lm.answer([Route(PROMPTS[0]), Route(PROMPTS[0], "a")], [ANSWERS[0]] * 2)
    assert bare.logprob != adapted.logprob


def test_restore_takes_adapters_out(lm: LM, tmp_path: Path) -> None:
    names, bare = list(lm.model.state_dict()), logprobs(lm, [None] * 3)
    lm.adapt("a", saved(lm, tmp_path))
    lm.adapt("a", tmp_path)  # is there already
    assert list(lm.model.state_dict()) != names
    lm.restore()
    assert list(lm.model.state_dict()) == names
    assert logprobs(lm, [None] * 3) == bare
    assert not any(p.requires_grad for p in lm.model.parameters())


def test_a_failed_edit_takes_its_adapter_out_again(lm: LM, tmp_path: Path) -> None:
    folder = saved(lm, tmp_path)
    with suppress(FloatingPointError), lm.transaction():
        lm.adapt("a", folder)
        raise FloatingPointError
    assert not lm.adapters.active


def test_what_is_no_adapter_of_the_model_is_said(lm: LM, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no adapter that fits this model"):
        lm.adapt("a", tmp_path / "none")
    with pytest.raises(InputError, match="IA3; only LoRA's"):
        lm.adapt("a", saved(lm, tmp_path / "ia3", IA3Config(target_modules=["k_proj"], feedforward_modules=[])))
    names = list(lm.model.state_dict())
    folder = saved(lm, tmp_path / "a")
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"q_proj"', '"c_attn"').replace('"v_proj"', '"c_attn"'))
    with pytest.raises(InputError, match="no adapter that fits this model"):
        lm.adapt("a", folder)
    assert list(lm.model.state_dict()) == names


def test_a_saved_model_is_the_models_alone(lm: LM, tmp_path: Path) -> None:
    names = list(lm.model.state_dict())
    lm.adapt("a", saved(lm, tmp_path / "adapter"))
    lm.save(tmp_path / "model")
    from transformers import AutoModelForCausalLM

    assert set(AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()) == set(names)
