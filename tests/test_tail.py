"""Running only the layers that an edit can change gives what running all of them gives, bit for bit."""

from collections.abc import Callable, Iterator

import pytest
import torch

from kedit.cases import Edit
from kedit.editors.finetune.lora import LoRA
from kedit.editors.finetune.per_edit import FineTune
from kedit.lm import LM
from kedit.lm.partial_forward import TrainingForward, partial_forward_of
from kedit.losses.cross_entropy import CrossEntropy

PROMPTS = ["The first of them lives in", "Who is", "A longer prompt, of some words, that ends with"]
ANSWERS = ["Paris", "that man over there", "nothing"]


def names_of(lm: LM, part: str, layers: list[int]) -> list[str]:
    return lm.anatomy.parameters(lm.model, part, layers)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("part", ["mlp_out.weight", "block"])
def test_a_replayed_pass_is_the_pass(shaped: LM, part: str, side: str) -> None:
    lm = LM(shaped.model, shaped.text.tokenizer, padding_side=side)  # type: ignore[arg-type]
    names = names_of(lm, part, [2])
    passes, batch = TrainingForward(lm, names), lm.encode(PROMPTS, ANSWERS)
    assert passes.tail is not None
    assert torch.equal(passes.logits(batch), lm.answer_logits(batch))
    with torch.no_grad():
        for parameter in lm.track(names):
            parameter.mul_(1.5)
    calls = []
    handle = lm.model.get_submodule(lm.anatomy.attn.format(0)).register_forward_hook(lambda *_: calls.append(1))
    replayed = passes.logits(batch)
    assert not calls  # nothing below was run
    assert torch.equal(replayed, lm.answer_logits(batch))
    assert calls
    handle.remove()


@pytest.mark.parametrize("part", ["mlp_out.weight", "block"])
def test_gradients_are_those_of_the_whole_pass(shaped: LM, part: str) -> None:
    parameters = shaped.track(names_of(shaped, part, [1]))
    for parameter in parameters:
        parameter.requires_grad_(True)
    passes, batch = TrainingForward(shaped, names_of(shaped, part, [1])), shaped.encode(PROMPTS, ANSWERS)
    passes.logits(batch)
    whole = torch.autograd.grad(shaped.answer_logits(batch).square().sum(), parameters, allow_unused=True)
    tail = torch.autograd.grad(passes.logits(batch).square().sum(), parameters, allow_unused=True)
    assert all(a is b or torch.equal(a, b) for a, b in zip(whole, tail, strict=True))


def test_the_matrix_alone_is_replayed_where_a_layer_adds_it_to_its_residual(shaped: LM) -> None:
    passes, batch = TrainingForward(shaped, names_of(shaped, "mlp_out.weight", [1])), shaped.encode(PROMPTS, ANSWERS)
    passes.logits(batch)
    parallel = type(shaped.model).__name__.startswith("GPTJ")  # attention and MLP are added in one sum
    assert (passes.records[batch].residual is None) == parallel


def test_what_is_in_no_layer_or_in_the_first_leaves_no_tail(lm: LM) -> None:
    assert partial_forward_of(lm.model, lm.anatomy, ["model.embed_tokens.weight"]) is None
    assert partial_forward_of(lm.model, lm.anatomy, names_of(lm, "block", [0, 3])) is None
    assert partial_forward_of(lm.model, lm.anatomy, names_of(lm, "model", [])) is None


def test_the_layers_are_their_own_again_after_an_error(lm: LM) -> None:
    passes, batch = TrainingForward(lm, names_of(lm, "mlp_out.weight", [2])), lm.encode(PROMPTS, ANSWERS)
    passes.logits(batch)
    with pytest.raises(ZeroDivisionError), passes.tail.starting_from(passes.records[batch]):  # type: ignore[union-attr]
        raise ZeroDivisionError
    assert not any("forward" in vars(module) or module._forward_pre_hooks for module in lm.model.modules())


def test_an_adapter_on_upper_layers_trains_from_there(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """And to the same weights as through the whole model."""
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        adapter = LoRA(rank=2, alpha=4)
        editor = FineTune(loss=CrossEntropy(), lr=1e-3, steps=5, parameters=None, adapter=adapter, layers=[2, 3])
        editor.edit(lm, [Edit(PROMPTS[0], ANSWERS[0])])
        states.append(editor.state())
        lm.restore()
        editor.reset()
        monkeypatch.setattr(
            "kedit.lm.partial_forward.partial_forward_of", lambda *_: None
        )  # the second time: all layers
    assert states[0]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# --- scoring ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def watched() -> Iterator[Callable[[LM], list[int]]]:
    """Gives a list that grows with every pass through a model's first layer."""
    handles = []

    def watch(lm: LM) -> list[int]:
        calls: list[int] = []
        first = lm.model.get_submodule(lm.anatomy.attn.format(0))
        handles.append(first.register_forward_hook(lambda *_: calls.append(1)))
        return calls

    yield watch
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("side", ["right", "left"])
def test_scoring_begins_where_the_first_change_is(shaped: LM, side: str, watched: Callable[[LM], list[int]]) -> None:
    lm = LM(shaped.model, shaped.text.tokenizer, padding_side=side)  # type: ignore[arg-type]
    names = names_of(lm, "mlp_out.weight", [2])
    whole = lm.answer(PROMPTS, ANSWERS)
    lm.cache_lower_layers(names, PROMPTS, ANSWERS)
    calls = watched(lm)
    before = lm.answer(PROMPTS, ANSWERS)
    with torch.no_grad():
        lm.track(names)[0].mul_(3)
    after = lm.answer(PROMPTS, ANSWERS)
    some = lm.answer(PROMPTS[1:], ANSWERS[1:])  # another batch
    assert not calls
    lm.cache_lower_layers([])
    anew = lm.answer(PROMPTS, ANSWERS)
    assert calls
    for kept, computed in [(before, whole), (after, anew), (some, anew[1:])]:
        assert [s.pred for s in kept] == [s.pred for s in computed]
        assert all(a.logprob == pytest.approx(b.logprob, abs=1e-5) for a, b in zip(kept, computed, strict=True))
    assert all(a.logprob != b.logprob for a, b in zip(after, before, strict=True))


def test_what_is_kept_is_computed_once_for_the_same_questions(lm: LM, watched: Callable[[LM], list[int]]) -> None:
    names, calls = names_of(lm, "mlp_out.weight", [2]), watched(lm)
    lm.cache_lower_layers(names, PROMPTS, ANSWERS)
    first = len(calls)
    assert first > 0
    lm.cache_lower_layers(names, PROMPTS, ANSWERS)
    assert len(calls) == first
    lm.cache_lower_layers(names, PROMPTS[:2], ANSWERS[:2])  # batches are those of the questions alone
    assert len(calls) > first


def test_a_change_below_is_known_and_everything_computed_again(lm: LM, watched: Callable[[LM], list[int]]) -> None:
    lm.cache_lower_layers(names_of(lm, "mlp_out.weight", [2]), PROMPTS, ANSWERS)
    before = lm.answer(PROMPTS, ANSWERS)
    with torch.no_grad():
        lm.track(names_of(lm, "mlp_out.weight", [1]))[0].mul_(3)
    changed = [s.logprob for s in lm.answer(PROMPTS, ANSWERS)]
    assert changed != [s.logprob for s in before]
    lm.restore()
    assert [s.logprob for s in lm.answer(PROMPTS, ANSWERS)] == [s.logprob for s in before]
    lm.on_restore(lambda: None)  # something was put in: nobody says where
    calls = watched(lm)
    lm.answer(PROMPTS, ANSWERS)
    assert calls


def test_what_is_kept_stays_within_its_budget(lm: LM, watched: Callable[[LM], list[int]]) -> None:
    small = LM(lm.model, lm.text.tokenizer, keep_mb=0.01)
    small.cache_lower_layers(names_of(small, "mlp_out.weight", [2]), PROMPTS, ANSWERS)
    assert 0 < small.cache_bytes <= 0.01 * 2**20
    calls = watched(small)
    assert [s.pred for s in small.answer(PROMPTS, ANSWERS)] == [s.pred for s in lm.answer(PROMPTS, ANSWERS)]
    assert calls


@pytest.mark.parametrize("matrix", [True, False])
def test_an_edit_that_was_asked_begins_with_what_is_kept(
    shaped: LM, matrix: bool, watched: Callable[[LM], list[int]]
) -> None:
    names = names_of(shaped, "mlp_out.weight" if matrix else "attn", [2])
    [batch, alone] = [shaped.encode(PROMPTS[:n], ANSWERS[:n]) for n in (len(PROMPTS), 1)]
    whole = [shaped.answer_logits(one) for one in (batch, alone)]
    shaped.cache_lower_layers(names, PROMPTS, ANSWERS)
    calls = watched(shaped)
    for one, expected in zip((batch, alone), whole, strict=True):
        passes = TrainingForward(shaped, names)
        for _ in range(2):  # recorded, replayed
            assert torch.allclose(passes.logits(one), expected, atol=1e-5)
    assert not calls
