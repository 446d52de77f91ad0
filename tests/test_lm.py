"""Tokenisation, scoring, undo and generation; on every architecture that kedit says it knows."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from kedit.common.errors import InputError
from kedit.evaluation.easyedit_scoring import score_group
from kedit.lm import LM, Route, load
from kedit.lm.batching import Budget
from kedit.lm.text import Pair, Text, collate

PROMPTS = ["Lucy Kelden was born in", "The occupation of Lena Ostker is", "Where was L. Kelden born?", "Nina"] * 16
ANSWERS = ["Eastford, Beloria", "glass manager", "Velport", "Blue Bank Systems of the North of Redford"] * 16
CASES = [(f"{p} {i}", a) for i, (p, a) in enumerate(zip(PROMPTS, ANSWERS, strict=True))]


def ids(lm: LM, cases: list[tuple[str, str]], **attributes: Any) -> list[tuple[list[int], list[int]]]:
    for name, value in attributes.items():
        setattr(lm, name, value)
    return [(s.gold, s.pred) for s in lm.answer([p for p, _ in cases], [a for _, a in cases])]


def test_scores_do_not_depend_on_batch_size_order_or_padding_side(shaped: LM) -> None:
    one_by_one = ids(shaped, CASES, token_budget=1)
    longest = max(len(pair.ids) for pair in shaped.text.pairs([p for p, _ in CASES], [a for _, a in CASES]))
    assert Budget(7 * longest, "tokens").rows([longest] * 64) == 7
    for side in ("right", "left"):
        for size in (1, 7, 64):
            assert ids(shaped, CASES, token_budget=size * longest, padding_side=side) == one_by_one
    order = random.Random(0).sample(range(len(CASES)), len(CASES))
    shuffled = ids(shaped, [CASES[i] for i in order])
    assert [shuffled[order.index(i)] for i in range(len(CASES))] == one_by_one


def test_answer_logits_are_the_models_own(shaped: LM) -> None:
    batch = shaped.encode(["Lucy was born in"], ["Velport, Norland"])
    whole = shaped.model(input_ids=batch.ids).logits[0]
    assert torch.allclose(shaped.answer_logits(batch), whole[batch.col], atol=1e-5)
    assert torch.equal(batch.gold, batch.ids[0, batch.col + 1])


def test_anatomy_finds_the_matrices_that_write_to_the_residual_stream(shaped: LM) -> None:
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: seen.update({name: output[0] if isinstance(output, tuple) else output})

    anatomy = shaped.anatomy
    for name in ("mlp_out", "attn_out", "mlp", "block"):
        shaped.model.get_submodule(getattr(anatomy, name).format(1)).register_forward_hook(keep(name))
    shaped.model(input_ids=torch.arange(8)[None])
    assert torch.equal(seen["mlp"], seen["mlp_out"])
    assert seen["attn_out"].shape == seen["block"].shape
    norm, head = (shaped.model.get_submodule(name) for name in (anatomy.norm, anatomy.head))
    logits = shaped.model(input_ids=torch.arange(8)[None], output_hidden_states=True)
    assert torch.allclose(head(logits.hidden_states[-1]), logits.logits, atol=1e-5)
    assert norm.weight.shape == (64,)
    assert anatomy.n_layers == 3
    assert anatomy.layer(21 / 32) == 1


@pytest.mark.parametrize("prompt", ["Lucy was born in", "Lucy was born in ", "Lucy was born in   "])
@pytest.mark.parametrize("answer", ["Velport", " Velport", "Velport  "])
def test_there_is_one_blank_before_an_answer_whatever_the_input(lm: LM, prompt: str, answer: str) -> None:
    [pair] = lm.text.pairs([prompt], [answer])
    [clean] = lm.text.pairs(["Lucy was born in"], ["Velport"])
    assert pair == clean
    assert lm.text.decode(pair.answer) == " Velport"


def test_keep_edge_spaces_tokenises_what_the_file_has(lm: LM) -> None:
    [pair] = Text(lm.text.tokenizer, keep_edge_spaces=True).pairs(["Lucy"], [" Velport"])
    assert lm.text.decode(pair.ids) == " Lucy  Velport"


@pytest.mark.parametrize("answer", ["", "   "])
def test_an_answer_without_tokens_is_refused(lm: LM, answer: str) -> None:
    with pytest.raises(InputError, match="no token"):
        lm.text.pairs(["Lucy was born in"], [answer])


def test_a_text_beyond_the_models_context_is_refused(shaped: LM) -> None:
    shaped.context = 8
    with pytest.raises(InputError, match=r"longer than the model's context \(8\)"):
        shaped.encode(["Lucy was born in the far north"], ["Velport, Norland"])


def test_running_out_of_memory_halves_the_batch_and_changes_nothing(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ids(lm, CASES)
    budget, body = lm.token_budget, lm._body.forward

    def small_machine(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        if input_ids.numel() > 60:
            raise RuntimeError("CUDA out of memory.")
        return body(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(lm._body, "forward", small_machine)
    assert ids(lm, CASES) == expected
    assert lm.token_budget <= 60
    lm.token_budget = budget


def test_other_runtime_errors_are_not_swallowed(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(lm._body, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        lm.answer(["Lucy"], ["Velport"])


# --- undo ------------------------------------------------------------------------------------------------------------


def snapshot(lm: LM) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


def assert_equal(lm: LM, before: dict[str, torch.Tensor]) -> None:
    after = lm.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_restore_is_bit_exact(shaped: LM) -> None:
    before = snapshot(shaped)
    for part in ("mlp_out.weight", "block", "model"):
        for parameter in shaped.track(shaped.anatomy.parameters(shaped.model, part, [1])):
            parameter.data.mul_(1.0001).add_(1e-3)
        shaped.restore()
        assert_equal(shaped, before)


def test_new_modules_are_undone_too(shaped: LM) -> None:
    before, name = snapshot(shaped), shaped.anatomy.mlp_out.format(1)
    parent, _, leaf = name.rpartition(".")
    original = shaped.model.get_submodule(name)
    inject_adapter_in_model(LoraConfig(target_modules=[name], r=2, init_lora_weights=False), shaped.model)
    shaped.on_restore(lambda: setattr(shaped.model.get_submodule(parent), leaf, original))
    assert any("lora_A" in key for key in shaped.model.state_dict())
    shaped.restore()
    assert_equal(shaped, before)


def test_a_failed_edit_is_undone_alone(shaped: LM) -> None:
    [name] = shaped.anatomy.parameters(shaped.model, "mlp_out.weight", [1])
    with shaped.transaction() as report:
        shaped.track([name])[0].data.add_(1.0)
    assert report["weight_change"] > 0
    first, undone = snapshot(shaped), []

    def fail() -> None:
        with shaped.transaction():
            shaped.track([name])[0].data.add_(torch.inf)
            shaped.on_restore(lambda: undone.append("hook"))

    with pytest.raises(FloatingPointError, match="not finite"):
        fail()
    assert_equal(shaped, first)
    assert undone == ["hook"]


def test_state_continues_on_a_pristine_model(shaped: LM) -> None:
    names = shaped.anatomy.parameters(shaped.model, "mlp_out", [0, 1])
    for parameter in shaped.track(names):
        parameter.data.add_(0.5)
    state, edited = {k: v.clone() for k, v in shaped.state().items()}, snapshot(shaped)
    assert sorted(state) == sorted(names)
    shaped.restore()
    shaped.load_state(state)
    assert_equal(shaped, edited)


def test_offloaded_parameters_can_be_scored_but_not_edited(shaped: LM) -> None:
    expected = ids(shaped, CASES)
    cpu_offload(shaped.model, execution_device=torch.device("cpu"))
    assert ids(shaped, CASES) == expected
    with pytest.raises(InputError, match=r"offloaded.*device_map"):
        shaped.track(shaped.anatomy.parameters(shaped.model, "mlp_out.weight", [1]))


# --- generation ------------------------------------------------------------------------------------------------------


def test_greedy_generation_equals_the_librarys(shaped: LM) -> None:
    prompts = ["Lucy was born in", "The", "Where was Nina Norro born? In the"]
    ours = shaped.generate(prompts, 8, stop=False)
    for prompt, generated in zip(prompts, ours, strict=True):
        [encoded] = shaped.text.prompts([prompt])
        shaped.model.generation_config.eos_token_id = None
        inputs = {"inputs": torch.tensor([encoded]), "attention_mask": torch.ones(1, len(encoded), dtype=torch.long)}
        out = shaped.model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)
        assert generated.full == shaped.text.decode(out[0].tolist())


def test_a_sample_depends_on_its_seed_alone(lm: LM) -> None:
    prompts = [p for p, _ in CASES]
    seeds = list(range(len(prompts)))
    together = [g.full for g in lm.generate(prompts, max_tokens=30, top_k=5, seeds=seeds, stop=False)]
    lm.token_budget, budget = 50, lm.token_budget
    alone = [g.full for g in lm.generate(prompts, max_tokens=30, top_k=5, seeds=seeds, stop=False)]
    lm.token_budget = budget
    assert together == alone
    again = lm.generate(prompts[:1], max_tokens=30, top_k=5, seeds=[99], stop=False)[0].full
    assert again != together[0]


def test_limits_count_the_prompt_and_eos_stops(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, body = [], lm._body.forward
    monkeypatch.setattr(lm._body, "forward", lambda **inputs: (steps.append(1), body(**inputs))[1])
    lm.generate(["Lucy Kelden was born in"], max_tokens=20, stop=False)
    assert len(steps) == 20 - len(lm.text.prompts(["Lucy Kelden was born in"])[0])
    assert lm.generate(["Lucy Kelden was born in"], max_tokens=3)[0].text == ""
    [stopped] = lm.generate(["Lucy Kelden was born in"], 20)
    assert stopped.text == " Eastford, Beloria."


# --- routes, quirks, files -------------------------------------------------------------------------------------------


def test_routes_rewrite_prompts_and_leave_their_mark(lm: LM) -> None:
    lm.route = lambda prompts, keys: [Route(f"Suppose that X. Then {p}", info={"hit": 1}) for p in prompts]
    [scored] = lm.answer(["Lucy was born in"], ["Velport"])
    [expected] = (lm.restore(), lm.answer(["Suppose that X. Then Lucy was born in"], ["Velport"]))[1]
    assert scored.info == {"hit": 1}
    assert scored.logprob == expected.logprob


def test_easyedit_padding_changes_what_it_says_it_changes(lm: LM) -> None:
    prompts, answers = ["Lucy Kelden was born in", "Nina Norro works for the old"], ["Redbrook", "Blue Bank"]
    right = lm.answer(prompts, answers)
    assert [s.pred for s in score_group(lm, lm.routed(prompts), answers, "left")] == [
        s.pred for s in right
    ]  # rotary: no shift
    legacy = score_group(lm, lm.routed(prompts), answers, "right")
    assert legacy[1].gold == right[1].gold  # the longest row has no pads
    assert legacy[0].gold == [lm.text.pad]  # the shorter one is compared at its pads


def test_chat_templates_have_one_bos_unless_asked(lm: LM) -> None:
    with pytest.raises(InputError, match="no chat template"):
        lm.text.chat("Hi")
    lm.text.tokenizer.chat_template = "{{ bos_token }}User: {{ messages[0].content }} Reply:"
    assert lm.text.chat("Hi") == "User: Hi Reply:"
    assert lm.text.chat("Hi", double_bos=True).startswith("<|endoftext|>User")
    lm.text.tokenizer.chat_template = None


def test_a_saved_model_loads_with_plain_transformers(small_dir: Path, tmp_path: Path) -> None:
    lm = load(str(small_dir))
    for parameter in lm.track(lm.anatomy.parameters(lm.model, "mlp_out.weight", [1])):
        parameter.data.add_(0.1)
    lm.save(tmp_path / "edited")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    assert all(torch.equal(value, lm.model.state_dict()[name]) for name, value in plain.state_dict().items())
    assert AutoTokenizer.from_pretrained(tmp_path / "edited")("Lucy").input_ids == lm.text.prompts(["Lucy"])[0]


def test_identity_is_that_of_the_files(small_dir: Path) -> None:
    first = load(str(small_dir)).identity
    assert load(str(small_dir)).identity == first
    config = small_dir / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 2e-06'))
    assert load(str(small_dir)).identity != first


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer"),
        (lambda d: (d / "model.safetensors").unlink(), "model cannot be loaded"),
        (lambda d: (d / "model.safetensors").write_bytes(b"torn"), "model cannot be loaded"),
        (lambda d: (d / "config.json").unlink(), "no model there"),
        (lambda d: (d / "config.json").write_text("{"), "cannot be loaded"),
    ],
)
def test_a_broken_model_folder_is_said_in_one_sentence(small_dir: Path, break_it: Any, said: str) -> None:
    break_it(small_dir)
    with pytest.raises(InputError, match=said) as caught:
        load(str(small_dir))
    assert "\n" not in str(caught.value)


def test_perplexity_is_low_for_what_the_model_has_learnt(lm: LM) -> None:
    assert lm.perplexity("Lucy Kelden was born in Eastford, Beloria.") < lm.perplexity("Beloria Kelden in was. born")


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompts_tokens_are_all_of_them_and_no_others(side: str) -> None:
    batch = collate([Pair([5, 6, 1, 2], 2), Pair([5, 3, 4, 7, 0], 4)], 0, side, torch.device("cpu"))  # type: ignore[arg-type]
    assert [row[here].tolist() for row, here in zip(batch.ids, batch.in_prompt, strict=True)] == [[5, 6], [5, 3, 4, 7]]
