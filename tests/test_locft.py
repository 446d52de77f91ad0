"""LocFT-BF: the breadth-first loop equals a plain one; skipped batches, the stop, the end-of-text token."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch.nn import functional

from kedit import world
from kedit.cases import questions_of
from kedit.common.errors import InputError
from kedit.editors.finetune import StandardFineTune
from kedit.editors.finetune.composed import closed
from kedit.evaluation.evaluator import Evaluator
from kedit.evaluation.strict import StrictProfile
from kedit.lm import LM
from kedit.losses.cross_entropy import CrossEntropy

EDITS = [case.edits[0] for case in world.cases(edits=7, limit=7, seed=1).cases]
NAME = "model.layers.2.mlp.down_proj.weight"
OPTIONS: dict[str, Any] = {
    "lr": 2e-3,
    "epochs": 12,
    "batch_size": 3,
    "layers": [2],
    "append_eos": True,
    "skip_loss": 0.3,
    "stop_loss": 0.2,
    "mean_over": "examples",
}


def editor(**more: Any) -> StandardFineTune:
    return StandardFineTune(loss=CrossEntropy(), **(OPTIONS | more))


def edited(lm: LM, **more: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """The trained matrix, and what the edit reports."""
    torch.manual_seed(0)
    report = editor(**more).edit(lm, EDITS)
    weight = lm.parameter(NAME).detach().clone()
    lm.restore()
    return weight, dict(report)


def plain_loop(lm: LM, eos: bool) -> tuple[torch.Tensor, int, int, list[float]]:
    """As the published script: Adam, epochs of shuffled batches; a batch below 0.3 is skipped, an epoch below 0.2 is
    the last. Returns the matrix, epochs, skipped batches, each epoch's loss."""
    tokenizer, weight = lm.text.tokenizer, lm.parameter(NAME)
    start, skipped, means = weight.detach().clone(), 0, []
    weight.requires_grad_(True)
    adam = torch.optim.Adam([weight], lr=OPTIONS["lr"])
    for epoch in range(OPTIONS["epochs"]):
        total = 0.0
        order = torch.randperm(len(EDITS), generator=torch.Generator().manual_seed(epoch))
        for some in order.split(OPTIONS["batch_size"]):
            losses = []
            for edit in (EDITS[i] for i in some.tolist()):
                prompt = tokenizer(edit.prompt).input_ids
                ids = tokenizer(f"{edit.prompt} {edit.target_new}").input_ids + [tokenizer.eos_token_id] * eos
                logits = lm.model(torch.tensor([ids])).logits[0]
                at = slice(len(prompt) - 1, len(ids) - 1)
                losses.append(functional.cross_entropy(logits[at], torch.tensor(ids[len(prompt) :])))
            loss = torch.stack(losses).mean()
            total += float(loss.detach()) * len(losses)
            if float(loss.detach()) < OPTIONS["skip_loss"]:
                skipped += 1
                continue
            adam.zero_grad()
            loss.backward()
            adam.step()
        means.append(total / len(EDITS))
        if means[-1] < OPTIONS["stop_loss"]:
            break
    made = weight.detach().clone()
    weight.requires_grad_(False)
    weight.grad = None
    weight.data.copy_(start)
    return made, len(means), skipped, means


@pytest.mark.parametrize("eos", [True, False])
def test_it_equals_a_plain_loop(lm: LM, eos: bool) -> None:
    """In float64: Adam turns the rounding of gradients near zero into whole steps."""
    lm = LM(deepcopy(lm.model).double(), lm.text.tokenizer)
    expected, epochs, skipped, means = plain_loop(lm, eos)
    assert skipped
    assert 1 < epochs < OPTIONS["epochs"]
    weight, report = edited(lm, append_eos=eos)
    assert (weight - expected).abs().max() < 1e-6
    assert report["steps"] == 3 * epochs
    assert report["loss"] == pytest.approx(means[-1], abs=1e-6)


def test_the_mean_over_batches_counts_a_short_batch_whole(lm: LM) -> None:
    by_examples, by_batches = (edited(lm, epochs=1, mean_over=over)[1]["loss"] for over in ("examples", "batches"))
    assert by_examples != pytest.approx(by_batches)


def test_a_model_that_has_learnt_eos_stops(lm: LM) -> None:
    [fact] = closed(lm, EDITS[:1])
    [pair] = lm.text.pairs([fact.prompt], [fact.target_new])
    assert pair.answer[-1] in lm.text.eos
    assert pair.answer.count(pair.answer[-1]) == 1


def test_a_tokenizer_without_an_end_and_a_skip_in_a_schedule_are_refused(
    lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(lm.text), "closing", "")
    with pytest.raises(InputError, match=r"set editor.append_eos=false"):
        editor().edit(lm, EDITS)
    for more in ({"schedule": "cosine"}, {"gradient_accumulation": 2}, {"global_batch": 6}):
        with pytest.raises(InputError, match="a batch that is skipped has no place in a schedule or among accumulated"):
            editor(**more)


def test_the_whole_block_is_attention_mlp_and_both_norms(lm: LM) -> None:
    names = editor(parameters="block", layers=[2]).edited_parameters(lm)
    assert set(names) == {name for name, _ in lm.model.named_parameters() if name.startswith("model.layers.2.")}


def test_strict_scores_reward_the_end(lm: LM) -> None:
    cases = world.cases(edits=7, limit=7, seed=1).cases
    asked = [q for case in cases for q in questions_of(case, ("reliability",))]
    stopped = {}
    for eos in (True, False):
        torch.manual_seed(0)
        editor(append_eos=eos, skip_loss=None, stop_loss=None, epochs=25).edit(lm, EDITS)
        evaluator = Evaluator(scoring=["strict"], strict=StrictProfile(stop=(), max_new=32))
        stopped[eos] = [a.strict.stopped_by for a in evaluator.answer(lm, asked) if a.strict]
        lm.restore()
    assert stopped[True] == ["eos"] * 7
