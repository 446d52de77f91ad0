"""Acting inside a pass: interventions, soft prompts, lent models, and the unedited model underneath."""

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from kedit.common.errors import InputError
from kedit.evaluation.evaluator import Evaluator
from kedit.lm import LM, Pass, Reader, Route
from kedit.lm.text import Pair
from kedit.loop.runner import experiment
from kedit.loop.settings import sequential

PROMPTS = ["Lucy Kelden was born in", "Where was Lucy Kelden born?", "Nina", "The occupation of Lena Ostker is"]
ANSWERS = ["Eastford, Beloria", "Velport", "Blue Bank Systems", "glass manager"]


def scores(lm: LM, prompts: Any = PROMPTS) -> list[list[float]]:
    return [scored.logprob for scored in lm.answer(prompts, ANSWERS)]


def close(a: list[list[float]], b: list[list[float]], atol: float = 1e-4) -> bool:
    return all(x == pytest.approx(y, abs=atol) for x, y in zip(a, b, strict=True))


class LastPromptToken:
    """Adds a vector to what a module puts out at each row's last prompt token, for prompts about Lucy."""

    def __init__(self, lm: LM, size: float = 3.0):
        width = lm.model.config.hidden_size
        self.vector = size * torch.randn(width, generator=torch.Generator().manual_seed(0))
        self.seen: list[Pass] = []

    def __call__(self, this: Pass, entered: Tensor, output: Tensor) -> Tensor:
        self.seen.append(this)
        if this.continues:
            return output
        at, output = this.last_prompt_token(), output.clone()
        for i, column in enumerate(at.tolist()):
            output[i, column] += self.vector.to(output)
            this.note(i, column=column - int(this.real[i].long().argmax()))
        return output


@pytest.fixture
def module(shaped: LM) -> str:
    return shaped.anatomy.mlp.format(1)


def test_it_acts_in_scoring_whatever_the_batch_and_the_padding(shaped: LM, module: str) -> None:
    before = scores(shaped)
    shaped.intervene(module, LastPromptToken(shaped))
    after = scores(shaped)
    assert not close(before, after, 1e-2)
    for side in ("left", "right"):
        for budget in (1, 64, 512):
            shaped.padding_side, shaped.token_budget = side, budget
            assert close(scores(shaped), after)
    [first, *_] = shaped.answer(PROMPTS, ANSWERS)
    assert first.info == {"column": len(shaped.text.prompts(PROMPTS[:1])[0]) - 1}
    shaped.restore()
    assert close(scores(shaped), before)


def test_generation_says_what_teacher_forcing_predicts(shaped: LM, module: str) -> None:
    shaped.intervene(module, LastPromptToken(shaped))
    pairs = shaped.text.pairs(PROMPTS, ANSWERS)
    said = shaped.greedy_continuation(shaped.batch(pairs)).pairs
    for one, scored in zip(said, shaped.score(said), strict=True):
        assert scored.pred == one.answer


def test_a_generation_is_one_memo_that_follows_its_rows(shaped: LM, module: str) -> None:
    """Rows leave the batch when half of them have ended; what was decided for a row stays with it."""
    memos: list[list[int]] = []

    def change(this: Pass, entered: Tensor, output: Tensor) -> Tensor:
        if not this.continues:
            this.memo["length"] = this.prompt.sum(-1)
            this.memo["name"] = [f"row {n}" for n in this.memo["length"].tolist()]
        assert len(this.memo["length"]) == len(output) == len(this.who)
        assert this.memo["name"] == [f"row {n}" for n in this.memo["length"].tolist()]
        assert not this.continues or not this.prompt.any()
        memos.append(this.memo["length"].tolist())
        return output

    shaped.intervene(module, change)
    shaped.generate(PROMPTS, [1, 2, 6, 9], stop=False)
    lengths = [len(ids) for ids in shaped.text.prompts(PROMPTS)]
    assert sorted(memos[0]) == sorted(lengths)
    assert memos[-1] == [lengths[3]]


def test_hanging_it_twice_hangs_it_once_and_contexts_switch_it_off(shaped: LM, module: str) -> None:
    before, change = scores(shaped), LastPromptToken(shaped)
    shaped.intervene(module, change)
    once = scores(shaped)
    shaped.intervene(module, change)
    assert close(scores(shaped), once)
    assert shaped.changed == [module]
    with shaped.without_interventions():
        assert close(scores(shaped), before)
    with shaped.unedited():
        assert shaped.changed == []
        assert close(scores(shaped), before)
    assert close(scores(shaped), once)
    with pytest.raises(AttributeError):
        shaped.intervene("model.nowhere", change)


def test_a_text_without_a_prompt_counts_as_all_prompt(shaped: LM, module: str) -> None:
    change = LastPromptToken(shaped)
    shaped.intervene(module, change)
    text = "Lucy Kelden was born in Eastford, Beloria. She works for Blue Bank Systems."
    shaped.perplexity(text, window=8)
    assert all(bool((this.prompt == this.real).all()) for this in change.seen)


def test_nothing_is_left_in_the_model(shaped: LM, module: str) -> None:
    shaped.intervene(module, LastPromptToken(shaped))
    scores(shaped)
    shaped.generate(PROMPTS, 2)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in shaped.model.modules())


def test_a_module_is_found_again_when_peft_wraps_it(lm: LM) -> None:
    name, seen = lm.anatomy.mlp_out.format(2), []
    lm.intervene(name, lambda this, entered, output: seen.append(type(output)) or 0 * output)
    plain = scores(lm)
    parent, _, leaf = name.rpartition(".")
    original = lm.model.get_submodule(name)
    inject_adapter_in_model(LoraConfig(target_modules=[name], r=2, init_lora_weights=False), lm.model)
    lm.on_restore(lambda: setattr(lm.model.get_submodule(parent), leaf, original))
    assert close(scores(lm), plain)  # what the wrapped module puts out is replaced as a whole
    assert len(seen) == 2


def test_cached_lower_layers_are_used_above_and_not_below_an_intervention(shaped: LM) -> None:
    above, below = (shaped.anatomy.mlp.format(layer) for layer in (2, 0))
    weight = shaped.anatomy.mlp_out.format(2) + ".weight"
    shaped.cache_lower_layers([weight], PROMPTS, ANSWERS)
    for name in (above, below):
        change = LastPromptToken(shaped)
        shaped.intervene(name, change)
        cached = scores(shaped)
        shaped._lower_layers._kept, kept = {}, shaped._lower_layers._kept
        assert close(scores(shaped), cached)
        shaped._lower_layers._kept = kept
        shaped.restore()


def test_training_starts_no_higher_than_an_intervention(shaped: LM) -> None:
    shaped.intervene(shaped.anatomy.mlp.format(1), LastPromptToken(shaped))
    weight = shaped.anatomy.mlp_out.format(2) + ".weight"
    tail = shaped.partial_forward([weight])
    assert tail is not None
    assert len(tail.layers) - 1 == 1
    assert tail.matrix is None


def test_saving_says_what_is_lost(shaped: LM, module: str, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    shaped.intervene(module, LastPromptToken(shaped), lost="the codebook")
    shaped.save(tmp_path)
    assert "the codebook is not saved" in caplog.text


# --- the unedited model ----------------------------------------------------------------------------------------------


def test_unedited_is_the_unedited_model_truly_and_costs_no_copy(shaped: LM, module: str) -> None:
    before = scores(shaped)
    names = shaped.anatomy.parameters(shaped.model, "mlp_out.weight", [1, 2])
    for parameter in shaped.track(names):
        parameter.data.mul_(1.1)
    shaped.intervene(module, LastPromptToken(shaped))
    shaped.route = lambda prompts, keys: [Route(f"Suppose that X. Then {p}") for p in prompts]
    edited = scores(shaped)
    pointers = [shaped.model.get_parameter(name).data_ptr() for name in names]
    with shaped.unedited():
        assert scores(shaped) == before
        with shaped.unedited():
            assert scores(shaped) == before
    assert scores(shaped) == edited
    assert [shaped.model.get_parameter(name).data_ptr() for name in names] == pointers
    shaped.restore()
    assert scores(shaped) == before


def test_whatever_needs_the_unedited_model_refuses_an_edited_one(lm: LM) -> None:
    """A route is a change, too: an experiment after IKE, or after an exception, would record edited answers."""
    from kedit import world
    from kedit.covariance.estimate import Covariance
    from kedit.editors import Editor
    from kedit.editors.extra_examples import Paraphrases
    from kedit.editors.locate.context_templates import Sampling
    from kedit.evaluation.baseline import baseline_answers

    cases = world.cases(edits=2, limit=2).cases
    lm.route = lambda prompts, keys: [Route(p) for p in prompts]
    needing = {
        "experiment": lambda: experiment(lm, sequential(cases, 2), Editor(), Evaluator(fluency_tokens=0)),
        "baseline": lambda: baseline_answers(lm, Evaluator(), []),
        "caching": lambda: lm.cache_lower_layers([lm.anatomy.mlp_out.format(3) + ".weight"], PROMPTS, ANSWERS),
        "covariance": lambda: Covariance(corpus="world", tokens=10).second_moment(lm, [1]),
        "templates": lambda: Sampling(lengths=[[5, 1]])(lm),
        "sentences": lambda: Paraphrases(n=2).fit(lm, ()),
    }
    for name, call in needing.items():
        with pytest.raises(InputError, match=rf"{name}.*needs the unedited model.*\(route\).*lm.restore\(\)"):
            call()


# --- substituted parameters ------------------------------------------------------------------------------------------


def test_gradients_flow_through_substituted_parameters(shaped: LM) -> None:
    [name] = shaped.anatomy.parameters(shaped.model, "mlp_out.weight", [1])
    batch = shaped.encode(PROMPTS, ANSWERS)
    before, order = scores(shaped), [n for n, _ in shaped.model.named_parameters()]
    scale = torch.ones((), requires_grad=True)
    with shaped.substituted({name: 1.5 * scale * shaped.model.get_parameter(name)}):
        assert shaped.changed == [name]
        loss = shaped.answer_logits(batch).logsumexp(-1).sum()
        loss.backward()
    assert scale.grad is not None
    assert scale.grad.abs() > 0
    assert scores(shaped) == before
    assert [n for n, _ in shaped.model.named_parameters()] == order
    with torch.no_grad():
        shaped.track([name])[0].mul_(1.5)
        assert torch.allclose(shaped.answer_logits(batch).logsumexp(-1).sum(), loss)


def test_tied_parameters_are_substituted_everywhere(lm: LM) -> None:
    name = lm.embedding_module + ".weight"
    assert lm.model.get_output_embeddings().weight is lm.model.get_parameter(name)
    batch = lm.encode(PROMPTS, ANSWERS)
    with lm.substituted({name: torch.zeros_like(lm.model.get_parameter(name))}):
        assert float(lm.answer_logits(batch).abs().max()) == 0


# --- soft prompts, lent models, token pairs ---------------------------------------------------------------------------


def test_a_soft_prompt_is_read_before_the_first_token(shaped: LM) -> None:
    width = shaped.model.config.hidden_size
    prefix = torch.randn(3, width, generator=torch.Generator().manual_seed(1))
    routes = [Route(PROMPTS[0], prefix=prefix), *(Route(p) for p in PROMPTS[1:])]
    before = scores(shaped)
    for side in ("left", "right"):
        shaped.padding_side = side
        after = scores(shaped, routes)
        assert close(after[1:], before[1:])
    [pair] = shaped.text.pairs(PROMPTS[:1], ANSWERS[:1])
    embeds = torch.cat([prefix, shaped.embeddings(pair.ids)])[None]
    logprobs = shaped.model(inputs_embeds=embeds).logits[0].log_softmax(-1)
    expected = [float(logprobs[3 + pair.start - 1 + i, token]) for i, token in enumerate(pair.answer)]
    assert after[0] == pytest.approx(expected, abs=1e-4)
    [written] = shaped.generate(routes[:1], 3, stop=False)
    ids: list[int] = []
    for _ in range(3):
        ids.append(int(shaped.model(inputs_embeds=embeds[:, : 3 + pair.start]).logits[0, -1].argmax()))
        embeds = torch.cat([embeds[:, : 3 + pair.start], shaped.embeddings(ids[-1:])[None]], dim=1)
        pair = Pair(pair.ids[: pair.start] + [0] * 9, pair.start + 1)
    assert written.text == shaped.text.decode(ids)
    none = [Route(PROMPTS[0], prefix=prefix[:0])]
    assert shaped.answer(none, ANSWERS[:1])[0].logprob == shaped.answer(PROMPTS[:1], ANSWERS[:1])[0].logprob


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_lent_models_mix_probabilities_in_scoring_and_generation(shaped: LM, lm: LM, weight: float) -> None:
    shaped.lend("other", lm)
    other = "The capital is"
    mixed = Route(PROMPTS[0], readers={"other": Reader(weight, other)})
    [scored, plain] = shaped.answer([mixed, Route(PROMPTS[1])], ANSWERS[:2])
    assert plain.logprob == pytest.approx(shaped.answer([PROMPTS[1]], [ANSWERS[1]])[0].logprob, abs=1e-4)
    [own] = shaped.text.pairs(PROMPTS[:1], ANSWERS[:1])
    theirs = Pair(lm.text.prompts([other])[0] + own.answer, len(lm.text.prompts([other])[0]))
    parts = shaped.score([own])[0].logprob, lm.score([theirs])[0].logprob
    expected = [math.log((1 - weight) * math.exp(a) + weight * math.exp(b)) for a, b in zip(*parts, strict=True)]
    assert scored.logprob == pytest.approx(expected, abs=1e-4)
    said = shaped.generate([mixed, Route(PROMPTS[1]), mixed], [4, 9, 2], stop=False)
    assert said[1].text == shaped.generate([PROMPTS[1]], 9, stop=False)[0].text
    batch = shaped.batch([Pair(own.prompt, own.start, mixed.reading)])
    continued = shaped.text.prompts([PROMPTS[0]])[0]
    tokens = [token for token in shaped._continue(batch.pairs, [4])[0]]
    for i, token in enumerate(tokens):
        a = shaped.model(input_ids=torch.tensor([continued + tokens[:i]])).logits[0, -1].softmax(-1)
        b = lm.model(input_ids=torch.tensor([lm.text.prompts([other])[0] + tokens[:i]])).logits[0, -1].softmax(-1)
        p = (1 - weight) * a + weight * b
        assert float(p[token]) >= float(p.max()) - 1e-5


def test_models_of_other_vocabularies_are_not_mixed(shaped: LM, small_dir: Any) -> None:
    other = LM(shaped.model, shaped.text.tokenizer)
    other.text.tokenizer = type("T", (), {"get_vocab": staticmethod(lambda: {"a": 0})})()  # type: ignore[assignment]
    with pytest.raises(InputError, match="another vocabulary"):
        shaped.lend("other", other)


def test_generation_ends_before_a_stop_string(lm: LM) -> None:
    [whole] = lm.generate(["Lucy Kelden was born in"], 20)
    assert whole.text == " Eastford, Beloria."
    [cut] = lm.generate(["Lucy Kelden was born in"], 20, until=["zzz", ", B"])
    assert (cut.text, cut.full) == (" Eastford", whole.full.removesuffix(", Beloria."))


@pytest.mark.parametrize("end", ["in", "out"])
def test_hidden_states_are_what_enters_and_leaves_a_module(shaped: LM, end: str) -> None:
    name, kept = shaped.anatomy.mlp_out.format(1), []
    found = shaped.hidden(PROMPTS, name, at="all", end=end)  # type: ignore[arg-type]
    module = shaped.model.get_submodule(name)
    handle = module.register_forward_hook(lambda m, args, out: kept.append(args[0] if end == "in" else out))
    for prompt, states in zip(PROMPTS, found, strict=True):
        shaped.model(input_ids=torch.tensor(shaped.text.prompts([prompt])))
        assert torch.allclose(kept[-1][0], states, atol=1e-5)
    handle.remove()
    last = shaped.hidden(PROMPTS, name, end=end)  # type: ignore[arg-type]
    assert all(torch.allclose(a[-1:], b, atol=1e-5) for a, b in zip(found, last, strict=True))


# --- attached tensors and float32 masters ----------------------------------------------------------------------------


def test_attached_tensors_are_rolled_back_saved_and_forgotten(shaped: LM) -> None:
    with shaped.transaction() as report:
        shaped.attach("codebook", torch.ones(2, 3))
    assert report == {}
    with shaped.transaction() as report:
        shaped.attach("codebook", 3 * shaped.attached["codebook"])
    assert report["weight_change"] == pytest.approx(2)
    state = dict(shaped.state())

    def fail() -> None:
        with shaped.transaction():
            shaped.attach("codebook", torch.full((2, 3), torch.nan))
            shaped.attach("other", torch.ones(1))

    with pytest.raises(FloatingPointError, match="not finite"):
        fail()
    assert list(shaped.attached) == ["codebook"]
    assert shaped.attached["codebook"].tolist() == [[3.0] * 3] * 2
    shaped.restore()
    assert not shaped.attached
    shaped.load_state(state)
    assert shaped.attached["codebook"].tolist() == [[3.0] * 3] * 2


def test_small_changes_of_low_precision_weights_add_up_in_their_masters(shaped: LM) -> None:
    low = LM(shaped.model.bfloat16(), shaped.text.tokenizer)
    [name] = low.anatomy.parameters(low.model, "mlp_out.weight", [1])
    original = low.model.get_parameter(name).detach().clone()
    step = torch.full_like(original, 1e-5, dtype=torch.float32)
    for _ in range(100):
        low.add({name: step})
    moved = (low.model.get_parameter(name) - original).float()
    assert moved.mean() == pytest.approx(1e-3, rel=0.1)
    state = {k: v.clone() for k, v in low.state().items()}
    assert state[name].dtype == torch.float32
    low.restore()
    assert torch.equal(low.model.get_parameter(name), original)
    low.load_state(state)
    low.add({name: -100 * step})
    assert (low.model.get_parameter(name) == original).float().mean() > 0.999  # but for ties of rounding


def test_a_failed_edit_leaves_masters_as_they_were(shaped: LM) -> None:
    low = LM(shaped.model.bfloat16(), shaped.text.tokenizer)
    names = low.anatomy.parameters(low.model, "mlp_out.weight", [0, 1])
    low.add({names[0]: torch.full_like(low.model.get_parameter(names[0]), 1e-4, dtype=torch.float32)})
    before = {name: master.clone() for name, master in low.masters.items()}

    def fail() -> None:
        with low.transaction():
            low.add({name: torch.full_like(low.model.get_parameter(name), torch.inf) for name in names})

    with pytest.raises(FloatingPointError):
        fail()
    assert list(low.masters) == [names[0]]
    assert torch.equal(low.masters[names[0]], before[names[0]])
