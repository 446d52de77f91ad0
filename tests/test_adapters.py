"""Saved adapters: each reads the prompts whose Route names it, in one batch with prompts that none reads."""

from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda held: {n: v for n, v in held.items() if "layers.1.self_attn.q_proj" not in n}, "lacks 2 tensors"),
        (lambda held: {f"module.{n}": v for n, v in held.items()}, "lacks 16 tensors"),
        (lambda held: held | {n.replace("q_proj", "k_proj"): v for n, v in held.items()}, "has 8 tensors .* no place"),
        (lambda held: held | {n.replace("layers.1", "layers.9"): v for n, v in held.items()}, "has 4 tensors .*place"),
        (lambda held: {n: v[:2] if "lora_A" in n else v[:, :2] for n, v in held.items()}, "size mismatch"),
    ],
)
def test_an_adapter_that_is_not_whole_is_refused(lm: LM, tmp_path: Path, change: Any, said: str) -> None:
    names, weights = list(lm.model.state_dict()), saved(lm, tmp_path) / "adapter_model.safetensors"
    save_file({name: value.clone() for name, value in change(load_file(weights)).items()}, weights)
    with pytest.raises(InputError, match=said) as caught:
        lm.adapt("a", tmp_path)
    assert "\n" not in str(caught.value)
    assert list(lm.model.state_dict()) == names


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("adapter_model.safetensors", "torn"),
        ("adapter_model.safetensors", None),
        ("adapter_config.json", "{"),
        ("adapter_config.json", "[]"),
        ("adapter_config.json", "{}"),
        ("adapter_config.json", '{"peft_type": "LORA", "r": "x"}'),
    ],
)
def test_a_broken_adapter_is_one_sentence(lm: LM, tmp_path: Path, file: str, text: str | None) -> None:
    names = list(lm.model.state_dict())
    (saved(lm, tmp_path) / file).unlink()
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(
        InputError, match=rf"{tmp_path}: (no adapter that fits this model|an adapter of type None)"
    ) as caught:
        lm.adapt("a", tmp_path)
    assert "\n" not in str(caught.value)
    assert list(lm.model.state_dict()) == names


def test_a_saved_model_is_the_models_alone(lm: LM, tmp_path: Path) -> None:
    names = list(lm.model.state_dict())
    lm.adapt("a", saved(lm, tmp_path / "adapter"))
    lm.save(tmp_path / "model")
    from transformers import AutoModelForCausalLM

    assert set(AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()) == set(names)
