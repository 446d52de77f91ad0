"""Standard fine-tuning: examples, epochs, and trainings that are killed, accumulated, checkpointed or spread."""

import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from jaxtyping import Float
from safetensors.torch import load_file

from kedit import world
from kedit.cases import Case, Edit
from kedit.common.errors import InputError
from kedit.covariance.corpora import texts
from kedit.editors.extra_examples import Paraphrases, RandomFacts, SimilarFacts, Texts, known_facts
from kedit.editors.finetune.epochs import Composed, StandardFineTune, TrainingRun
from kedit.editors.finetune.lora import LoRA
from kedit.lm import LM
from kedit.losses import LossInputs
from kedit.losses.cross_entropy import CrossEntropy
from kedit.losses.dpo import PreferNewAnswer
from kedit.losses.kdpo import KDPO

DATA = world.cases(edits=8, limit=8, seed=1, train=True)
EDITS = [case.edits[0] for case in DATA.cases]


def editor(**given: Any) -> StandardFineTune:
    defaults = {"loss": CrossEntropy(), "lr": 1e-3, "epochs": 2, "batch_size": 4, "layers": [2]}
    made = StandardFineTune(**(defaults | given))
    return made


def trained(lm: LM, edits: Sequence[Edit] = EDITS, **given: Any) -> torch.Tensor:
    """The trained matrix, of an edit made on the pristine model."""
    torch.manual_seed(0)
    made = editor(**given)
    made.fit(lm, DATA.train)
    made.edit(lm, edits)
    weight = lm.model.model.layers[2].mlp.down_proj.weight.detach().clone()
    lm.restore()
    return weight


# --- what the loss wants of the weights at the start -----------------------------------------------------------------

OLD = [replace(edit, target_old=other.target_new) for edit, other in zip(EDITS, EDITS[1:] + EDITS[:1], strict=True)]


class Recorded(PreferNewAnswer):
    """Writes down its values, and of how many examples it has asked the reference."""

    values: ClassVar[list[float]] = []
    referred: ClassVar[list[int]] = []

    def __call__(self, view: LossInputs, logits: Float[torch.Tensor, "k v"]) -> Float[torch.Tensor, " n"]:
        values = super().__call__(view, logits)
        self.values.extend(values.tolist())
        return values

    def _reference(self, view: LossInputs) -> Float[torch.Tensor, " m"]:
        self.referred.append(len(self.rows))
        return super()._reference(view)


class Forgetful(Recorded):
    remembers = False


@pytest.mark.parametrize("given", [{}, {"adapter": LoRA(rank=4, alpha=8), "parameters": None}], ids=["weights", "lora"])
def test_the_reference_of_dpo_is_computed_once_for_each_example(lm: LM, given: dict[str, Any]) -> None:
    made = {}
    for kind in (Recorded, Forgetful):
        kind.values.clear()
        kind.referred.clear()
        torch.manual_seed(0)
        loss = kind(CrossEntropy(), alpha=0.5, beta=0.5)
        tuner = editor(loss=loss, epochs=3, examples={"para": Paraphrases(prefixes=["So. ", "Now. "])}, **given)
        tuner.fit(lm, ())
        tuner.edit(lm, OLD)
        lm.restore()
        tuner.reset()
        made[kind] = list(kind.values), sum(kind.referred)
    (once, few), (each, many) = made.values()
    assert (few, many) == (24, 72)
    assert once == pytest.approx(each, abs=1e-6)


def test_only_what_is_trained_is_referred_to(lm: LM) -> None:
    Recorded.referred.clear()
    editor(loss=Recorded(CrossEntropy(), alpha=0.5, beta=0.5), max_steps=1).edit(lm, OLD)
    assert sum(Recorded.referred) == 4


# --- examples --------------------------------------------------------------------------------------------------------


def test_paraphrases_are_sentences_of_the_unedited_model_the_same_for_every_edit(lm: LM) -> None:
    source = Paraphrases(n=15)
    source.fit(lm, ())
    first, second = source.of(EDITS[0]), source.of(EDITS[1])
    assert len(first) == len(second) == 15
    assert all(
        fact.prompt.endswith(". " + EDITS[0].prompt) and fact.target_new == EDITS[0].target_new for fact in first
    )
    assert [f.prompt.removesuffix(EDITS[0].prompt) for f in first] == [
        f.prompt.removesuffix(EDITS[1].prompt) for f in second
    ]
    assert len({fact.prompt for fact in first}) > 5
    given = Paraphrases(prefixes=["So. "])
    given.fit(lm, ())
    assert [fact.prompt for fact in given.of(EDITS[0])] == ["So. " + EDITS[0].prompt]


def test_random_facts_are_true_differ_by_edit_and_no_test_asks_them(lm: LM) -> None:
    source = RandomFacts(n=20)
    source.fit(lm, DATA.train)
    facts = source.of(EDITS[0])
    assert len({fact.prompt for fact in facts}) == 20
    assert facts == source.of(EDITS[0])
    assert facts != source.of(EDITS[1])
    [right] = {
        lm.answer([f.prompt], [f.target_new])[0].pred == lm.text.pairs([f.prompt], [f.target_new])[0].answer
        for f in facts
    }
    assert right  # the unedited model knows every one
    asked = {probe.prompt for case in DATA.cases for probe in case.probes}
    assert not asked & {fact.prompt for fact in source.known}


def test_similar_facts_are_the_nearest_by_minilm(lm: LM) -> None:
    source = SimilarFacts(n=15)
    source.fit(lm, DATA.train)
    edit = Edit("Who employs Somebody?", "x")
    assert all("mploy" in fact.prompt or "works" in fact.prompt for fact in source.of(edit)[:5])
    assert len(source.of(edit)) == 15


def test_too_few_known_facts_are_named() -> None:
    with pytest.raises(InputError, match=r"has 1 facts .* 20 are trained"):
        known_facts([Case("a", (Edit("p", "new", None, "old"),), ())], 20)


def test_an_edit_that_is_true_is_its_own_known_fact() -> None:
    assert known_facts([Case("a", (Edit("p", "true"),), ())], 1)[0].target_new == "true"


def test_texts_come_from_files_and_the_world(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("One.\n\nTwo\nlines.\n\n\n")
    (tmp_path / "lines.jsonl").write_text('{"text": "One."}\n{"text": "Two."}\n')
    assert list(texts(str(tmp_path / "plain.txt"))) == ["One.", "Two\nlines."]
    assert list(texts(str(tmp_path / "lines.jsonl"))) == ["One.", "Two."]
    assert len(texts("world")) > 100
    (tmp_path / "wrong.jsonl").write_text('{"text": "One."}\n{"txt": "Two."}\n')
    with pytest.raises(InputError, match="line 2"):
        texts(str(tmp_path / "wrong.jsonl"))
    with pytest.raises(InputError, match="no file"):
        Texts(source=str(tmp_path / "none"))


def test_gamma_weighs_text_against_facts(lm: LM, tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("Only this.")
    batch = lm.encode_texts(["Only this."], 256)
    assert batch.gold.tolist() == batch.ids[0, 1:].tolist()
    text = torch.nn.functional.cross_entropy(lm.answer_logits(batch), batch.gold).item()
    source = Texts(source=str(tmp_path / "plain.txt"), gamma=0.1)
    assert source.added(torch.tensor(5.0), lm, 1.0).item() == pytest.approx(0.9 * 5 + 0.1 * text)


# --- epochs ----------------------------------------------------------------------------------------------------------


def test_every_epoch_passes_once_over_every_edit_and_example_in_its_own_order(lm: LM) -> None:
    made = editor(examples={"para": Paraphrases(prefixes=["A. ", "B. "])}, epochs=2, batch_size=5)
    made.fit(lm, ())
    data = Composed(made, EDITS)
    assert len(data) == 8 * 3
    with made.tuned(lm) as parameters:
        batches = list(TrainingRun(made, lm, data, parameters).order())
    first, second = ([fact.prompt for batch in half for fact in batch] for half in (batches[:5], batches[5:]))
    assert (
        Counter(first) == Counter(second) == Counter(prefix + e.prompt for e in EDITS for prefix in ("", "A. ", "B. "))
    )
    assert first != second


def test_an_epoch_below_the_stop_is_the_last(lm: LM) -> None:
    assert editor(epochs=50, stop_loss=1.0).edit(lm, EDITS)["steps"] < 100
    assert editor(epochs=50, max_steps=3).edit(lm, EDITS)["steps"] == 3


def test_any_loss_can_be_minimised_in_batches(lm: LM) -> None:
    """A loss that compares with the start of the edit gets those weights in every batch."""
    before = trained(lm, epochs=0 + 1, max_steps=1, lr=0.0)
    after = trained(lm, loss=KDPO(beta=0.1), epochs=4)
    assert not torch.equal(before, after)


def test_accumulated_batches_are_one_larger_batch(lm: LM) -> None:
    double = LM(
        deepcopy(lm.model).double(), lm.text.tokenizer
    )  # Adam turns the rounding of a gradient near 0 into steps
    whole = trained(double, batch_size=4)
    parts = trained(double, batch_size=2, gradient_accumulation=2)
    assert torch.allclose(whole, parts, rtol=0, atol=1e-10)
    made_up = trained(double, batch_size=2, global_batch=4)  # of fewer processes than it takes, by accumulation
    assert torch.equal(made_up, parts)


def test_a_global_batch_is_shared_by_the_processes() -> None:
    made = editor(batch_size=32, global_batch=256)
    assert [made.accumulation(processes) for processes in (1, 2, 8)] == [8, 4, 1]
    with pytest.raises(InputError, match="global_batch=256 is no multiple of 96, the examples that 3 processes read"):
        made.accumulation(3)
    assert editor(gradient_accumulation=3).accumulation(8) == 3


def test_dropout_is_on_only_while_it_trains(lm: LM) -> None:
    seen = []
    hook = lm.model.register_forward_pre_hook(lambda model, _: seen.append(model.training))
    plain = trained(lm)
    assert not any(seen)
    trained(lm, dropout=True)
    hook.remove()
    assert seen[-1]
    assert not any(module.training for module in lm.model.modules())
    assert torch.equal(plain, trained(lm))


def test_gradient_checkpointing_changes_memory_not_weights(lm: LM) -> None:
    assert torch.allclose(trained(lm), trained(lm, gradient_checkpointing=True), atol=1e-6)
    assert not any(module.training for module in lm.model.modules())
    assert not lm.embeddings([1]).requires_grad  # nor does what the model reads ask for gradients afterwards


def test_mixed_precision_trains_float32_weights(lm: LM) -> None:
    mixed = trained(lm, mixed_precision="bf16")
    assert mixed.dtype == torch.float32
    assert 0 < (mixed - trained(lm)).abs().max() < 0.01


def rates_of(training: TrainingRun) -> list[float]:
    """The learning rate of each step; the training is through then."""
    rates = []
    for number, facts in enumerate(training.order()):
        rates.append(training.schedule.get_last_lr()[0])
        training.step(number, facts)
    return rates


def test_a_cosine_schedule_ends_near_zero(lm: LM) -> None:
    made = editor(schedule="cosine", epochs=4)
    with made.tuned(lm) as parameters:
        rates = rates_of(TrainingRun(made, lm, Composed(made, EDITS), parameters))
    assert rates == pytest.approx([1e-3 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)])


def test_a_warm_up_raises_the_rate_and_long_gradients_are_shortened(lm: LM) -> None:
    made = editor(schedule="cosine", epochs=4, warmup_ratio=0.2, max_grad_norm=1e-3)
    with made.tuned(lm) as parameters:
        training = TrainingRun(made, lm, Composed(made, EDITS), parameters)
        rates = rates_of(training)
        [weight] = parameters.leaves
        assert float(training.optimizer.state[weight]["exp_avg_sq"].sum()) <= 1e-6  # squares of what was shortened
    assert rates[:3] == [0.0, 0.0005, 0.001]
    assert sorted(rates[2:], reverse=True) == rates[2:]
    lm.restore()
    with pytest.raises(InputError, match="no warm-up"):
        editor(warmup_ratio=0.1)


# --- killed, and spread over processes -------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_killed_training_continues_to_the_same_weights(
    lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation: int
) -> None:
    given: dict[str, Any] = {"epochs": 4, "schedule": "cosine", "gradient_accumulation": accumulation}
    torch.manual_seed(0)
    loss = editor(**given).edit(lm, EDITS)["loss"]
    straight = lm.model.model.layers[2].mlp.down_proj.weight.detach().clone()
    lm.restore()
    step = TrainingRun.step

    def killed(self: TrainingRun, number: int, facts: Sequence[Edit]) -> float:
        if number == 5:
            raise Killed
        return step(self, number, facts)

    monkeypatch.setattr(TrainingRun, "step", killed)
    made = editor(**given, checkpoint_s=0.0)
    made.scratch = tmp_path / "scratch"
    torch.manual_seed(0)
    with pytest.raises(Killed):
        made.edit(lm, EDITS)
    lm.restore()
    assert (tmp_path / "scratch" / "training.safetensors").exists()
    monkeypatch.setattr(TrainingRun, "step", step)
    torch.manual_seed(0)
    taken = made.edit(lm, EDITS)
    assert (taken["steps"], taken["loss"]) == (8, loss)
    assert torch.equal(lm.model.model.layers[2].mlp.down_proj.weight, straight)


def test_another_edits_checkpoint_is_left_alone(lm: LM, tmp_path: Path) -> None:
    made = editor(checkpoint_s=0.0)
    made.scratch = tmp_path
    made.edit(lm, EDITS[:4])
    lm.restore()
    torch.manual_seed(0)
    made.edit(lm, EDITS)
    weight = lm.model.model.layers[2].mlp.down_proj.weight.clone()
    lm.restore()
    assert torch.equal(weight, trained(lm))


def test_two_processes_make_the_weights_of_one_with_twice_the_batch(lm: LM, tmp_path: Path) -> None:
    cell = ["dataset.limit=8", "setting=mass", "T=8", "editor=ft_mask", "editor.epochs=2", "editor.lr=1e-3"]
    rest = ["tracker=none", "eval.fluency_tokens=0", "save=true"]
    alone = [sys.executable, "-m", "kedit.run", *cell, "editor.batch_size=4", "seed=1", *rest]
    spread = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "kedit.run"]
    models = []
    for number, command in enumerate([alone, [*spread, *cell, "editor.batch_size=2", "seed=1", *rest]]):
        env = os.environ | {"KEDIT_RUNS": str(tmp_path / str(number))}
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        [model] = (tmp_path / str(number)).rglob("model.safetensors")
        models.append(load_file(model))
        assert done.stdout.count("(unedited)") == 1  # one table
    original = lm.model.state_dict()
    for name, one in models[0].items():
        change, difference = one - original[name], one - models[1][name]
        assert difference.norm() <= 1e-3 * change.norm()
