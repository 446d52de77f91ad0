"""The loop that trains one edit at a time: stop rules, references, constraints, adapters."""

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from kedit import world
from kedit.common.errors import InputError
from kedit.common.paths import ROOT
from kedit.editors import Job
from kedit.editors.finetune.joint_training import JointTraining
from kedit.editors.finetune.lora import AdaLoRA, LoRA
from kedit.editors.finetune.per_edit import FineTune
from kedit.lm import LM, load
from kedit.lm.dropout import BatchDraws, Draws
from kedit.lm.route import Reading
from kedit.lm.text import Pair, Side, collate
from kedit.losses import Loss
from kedit.losses.cross_entropy import CrossEntropy
from kedit.losses.dpo import DPO
from kedit.losses.kdpo import KDPO
from kedit.losses.overtone import Overtone

EDITS = [case.edits[0] for case in world.cases(edits=4, limit=4, seed=1).cases]


def weights(lm: LM) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def configured(*given: str) -> Any:
    """The editor that these choices make."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return instantiate(compose("config", list(given)).editor, _convert_="all")


def test_ft_m_stops_without_a_step_when_the_loss_is_small_enough(lm: LM) -> None:
    before = weights(lm)
    assert FineTune(loss=CrossEntropy(), lr=1e-3, steps=25, stop_loss=100.0).edit(lm, EDITS[:1])["steps"] == 0
    assert equal(before, weights(lm))
    few = FineTune(loss=CrossEntropy(), lr=1e-3, steps=25, stop_loss=0.5).edit(lm, EDITS[:1])
    assert 1 < few["steps"] < 25


def test_kdpo_stops_at_the_start_of_a_cycle_once_the_answer_is_the_argmax(lm: LM) -> None:
    editor = FineTune(loss=KDPO(beta=0.1), lr=1e-3, cycles=10, steps=8)
    taken = int(editor.edit(lm, EDITS[:1])["steps"])
    assert taken % 8 == 0
    assert 8 <= taken < 80
    assert editor.edit(lm, EDITS[:1])["steps"] == 0  # it says so already: y_l = y_w in the first cycle
    [scored] = lm.answer([EDITS[0].prompt], [EDITS[0].target_new])
    assert scored.pred == scored.gold


def test_kdpo_equals_a_plain_loop_with_a_frozen_copy_of_the_model(lm: LM) -> None:
    """Algorithm 1, word by word: a second model as reference, at the start of the edit, after an earlier edit."""
    lm = LM(copy.deepcopy(lm.model).double(), lm.text.tokenizer)  # float64: Adam magnifies rounding
    editor = FineTune(loss=KDPO(beta=0.1), lr=1e-3, cycles=3, steps=4, layers=[2])
    editor.edit(lm, EDITS[:1])
    reference, policy = copy.deepcopy(lm.model), copy.deepcopy(lm.model)
    weight = policy.model.layers[2].mlp.down_proj.weight.requires_grad_(True)
    optimizer = torch.optim.Adam([weight], lr=1e-3)
    [pair] = lm.text.pairs([EDITS[1].prompt], [EDITS[1].target_new])
    ids, start = torch.tensor([pair.ids]), pair.start

    def logp(model: torch.nn.Module) -> torch.Tensor:
        return model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)

    chosen, cycles = ids[0, start:], 0
    for _ in range(3):
        rejected = logp(policy).argmax(-1)
        if torch.equal(rejected, chosen):
            break
        cycles += 1
        for _ in range(4):
            now, then = logp(policy), logp(reference).detach()
            h = sum(p.gather(-1, y[:, None]).sum() * s for p, s, y in [(now, 1, chosen), (now, -1, rejected)])
            h = h - sum(p.gather(-1, y[:, None]).sum() * s for p, s, y in [(then, 1, chosen), (then, -1, rejected)])
            optimizer.zero_grad()
            (-torch.nn.functional.logsigmoid(0.1 * h)).backward()
            optimizer.step()
    assert cycles == 3
    editor.edit(lm, EDITS[1:2])
    assert torch.allclose(lm.model.model.layers[2].mlp.down_proj.weight, weight, atol=1e-10)


def test_the_norm_constraint_holds(lm: LM) -> None:
    [name] = lm.anatomy.parameters(lm.model, "mlp_out.weight", [2])
    before = lm.model.get_parameter(name).clone()
    FineTune(loss=CrossEntropy(), lr=1e-2, steps=5, norm_constraint=1e-3, layers=[2]).edit(lm, EDITS[:1])
    change = (lm.model.get_parameter(name) - before).abs().max()
    assert 0 < change <= 1e-3 + 1e-7


def test_a_loss_that_is_not_finite_raises_what_the_loop_catches(lm: LM) -> None:
    [name] = lm.anatomy.parameters(lm.model, "mlp_out.weight", [2])
    lm.track([name])[0].data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="nan"):
        FineTune(loss=CrossEntropy(), lr=1e-3, steps=5).edit(lm, EDITS[:1])


def test_layers_and_parts_that_the_model_does_not_have_are_refused(lm: LM) -> None:
    with pytest.raises(InputError, match="layers 0 to 3"):
        FineTune(loss=CrossEntropy(), lr=1e-3, steps=1, layers=[21]).edit(lm, EDITS[:1])
    with pytest.raises(InputError, match="mlp_out"):
        FineTune(loss=CrossEntropy(), lr=1e-3, steps=1, parameters="down_proj").edit(lm, EDITS[:1])


# --- DPO -------------------------------------------------------------------------------------------------------------


def test_dpo_equals_a_plain_loop_with_a_frozen_copy_of_the_model(lm: LM) -> None:
    """KDPO's Figure 2, left: a new rejected answer each cycle, in its own context; the reference is a second model."""
    lm = LM(copy.deepcopy(lm.model).double(), lm.text.tokenizer)
    editor = FineTune(loss=DPO(beta=0.1), lr=1e-3, cycles=3, steps=4, layers=[2])
    editor.edit(lm, EDITS[:1])
    reference, policy = copy.deepcopy(lm.model), copy.deepcopy(lm.model)
    weight = policy.model.layers[2].mlp.down_proj.weight.requires_grad_(True)
    optimizer = torch.optim.Adam([weight], lr=1e-3)
    [pair] = lm.text.pairs([EDITS[1].prompt], [EDITS[1].target_new])
    chosen, start = torch.tensor([pair.ids]), pair.start

    def logp(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
        logprobs = model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
        return logprobs.gather(-1, ids[0, start:, None]).sum()

    cycles = 0
    for _ in range(3):
        rejected = policy.generate(
            chosen[:, :start], max_new_tokens=len(pair.answer), min_new_tokens=len(pair.answer), do_sample=False
        )
        if torch.equal(rejected, chosen):
            break
        cycles += 1
        for _ in range(4):
            now = logp(policy, chosen) - logp(policy, rejected)
            then = (logp(reference, chosen) - logp(reference, rejected)).detach()
            optimizer.zero_grad()
            (-torch.nn.functional.logsigmoid(0.1 * (now - then))).backward()
            optimizer.step()
    assert cycles == 3
    editor.edit(lm, EDITS[1:2])
    assert torch.allclose(lm.model.model.layers[2].mlp.down_proj.weight, weight, atol=1e-10)


# --- the released KDPO -----------------------------------------------------------------------------------------------


def test_the_released_kdpo_leaves_w0_plus_twice_the_change(lm: LM) -> None:
    once = configured("editor=kdpo_released", "editor.delta_times=1")
    twice = configured("editor=kdpo_released")
    [name] = lm.anatomy.parameters(lm.model, "mlp_out.weight", twice.layers)
    once.edit(lm, EDITS[:1])  # the sequence so far
    before = lm.model.get_parameter(name).clone()
    with lm.transaction():
        assert once.edit(lm, EDITS[1:2])["steps"] > 0
        change = lm.model.get_parameter(name) - before
        lm.model.get_parameter(name).data.copy_(before)
    twice.edit(lm, EDITS[1:2])
    assert torch.allclose(lm.model.get_parameter(name), before + 2 * change, atol=1e-7)


def test_a_first_cycle_that_learns_nothing_is_left_after_two_steps(lm: LM) -> None:
    editor = FineTune(loss=KDPO(beta=0.1), lr=1e-9, steps=8, stuck_loss=math.log(2))
    assert editor.edit(lm, EDITS[:1])["steps"] == 2


# --- weights and their decay -----------------------------------------------------------------------------------------


def test_ft_ws_weight_decay_is_the_papers_power_law() -> None:
    editor = configured("editor=ft_w", "editor.weight_decay=power_law")
    assert editor.decay(1) == pytest.approx(1.1687, abs=1e-4)
    assert editor.decay(10_000) == pytest.approx(1.1687 * 10_000**-0.87028798, rel=1e-4)
    assert configured("editor=ft_w").decay(10_000) == 0.0
    with pytest.raises(InputError, match="power_law"):
        FineTune(loss=CrossEntropy(), lr=1.0, steps=1, weight_decay="law")


def test_ft_ls_clamp_holds_after_every_step(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = configured("editor=ft_l", "editor.norm_constraint=1e-3", "editor.lr=1e-2", "editor.steps=5")
    [name] = lm.anatomy.parameters(lm.model, "mlp_out.weight", editor.layers)
    before, reached = lm.model.get_parameter(name).clone(), []
    update = JointTraining._update

    def watched(*given: Any) -> None:
        update(*given)
        reached.append(float((lm.model.get_parameter(name).detach() - before).abs().max()))

    monkeypatch.setattr(JointTraining, "_update", watched)
    editor.edit(lm, EDITS[:1])
    assert len(reached) == 5
    assert all(0 < reach <= 1e-3 + 1e-7 for reach in reached)


# --- adapters --------------------------------------------------------------------------------------------------------


def lora(**given: Any) -> FineTune:
    return FineTune(loss=CrossEntropy(), lr=1e-3, steps=8, parameters=None, adapter=LoRA(rank=2, alpha=4, **given))


def test_one_adapter_stays_and_every_edit_trains_it_on(lm: LM) -> None:
    editor, names = lora(), [name for name, _ in lm.model.named_parameters()]
    base = weights(lm)
    editor.edit(lm, EDITS[:1])
    first = editor.state()
    editor.edit(lm, EDITS[1:2])
    assert first.keys() == editor.state().keys()
    assert not equal(first, editor.state())
    now = {name.replace(".base_layer", ""): value for name, value in lm.model.state_dict().items()}
    assert all(torch.equal(now[name], value) for name, value in base.items())
    lm.restore()
    assert [name for name, _ in lm.model.named_parameters()] == names
    assert not hasattr(lm.model, "peft_config")


def test_a_merged_adapter_leaves_the_models_own_modules(lm: LM) -> None:
    editor, names = lora(merge=True), list(lm.model.state_dict())
    editor.edit(lm, EDITS[:1])
    assert list(lm.model.state_dict()) == names
    assert editor.state() == {}
    assert sorted(lm.state()) == [f"model.layers.{i}.self_attn.{m}_proj.weight" for i in range(4) for m in "qv"]


@pytest.mark.parametrize("merge", [True, False])
def test_merged_or_not_an_edit_answers_the_same(lm: LM, merge: bool) -> None:
    asked = [EDITS[0].prompt], [EDITS[0].target_new]
    said = []
    for merged in (merge, not merge):
        torch.manual_seed(0)
        editor = lora(merge=merged)
        editor.edit(lm, EDITS[:1])
        said.append(lm.answer(*asked)[0].logprob)
        lm.restore()
        editor.reset()
    assert said[0] == pytest.approx(said[1], abs=1e-4)


@pytest.mark.parametrize("merge", [True, False])
def test_a_failed_edit_takes_its_adapter_out_or_brings_it_back(lm: LM, merge: bool) -> None:
    editor = lora(merge=merge)
    editor.edit(lm, EDITS[:1])
    before, learnt = weights(lm), editor.state()
    editor.lr = math.inf
    with pytest.raises(FloatingPointError), lm.transaction():
        editor.edit(lm, EDITS[1:2])
    editor.load_state(lm, learnt)
    assert equal(before, weights(lm))


def test_adalora_ends_at_its_target_budget(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks: list[list[int]] = []
    merge = AdaLoRA._merge
    monkeypatch.setattr(AdaLoRA, "_merge", lambda self, lm: (ranks.append(self.ranks()), merge(self, lm))[1])
    editor = configured("editor=adalora")
    editor.edit(lm, EDITS[:1])
    assert len(ranks[0]) == 8  # q_proj and v_proj of four layers
    assert sum(ranks[0]) == 8 * editor.adapter.rank
    assert len(set(ranks[0])) > 1  # and the allocator had its say


def test_the_released_adalora_keeps_every_rank(lm: LM) -> None:
    editor = configured("editor=adalora_released")
    editor.edit(lm, EDITS[:1])
    assert editor.adapter.ranks() == [12] * 8


def test_what_is_trained_is_one_thing(lm: LM) -> None:
    with pytest.raises(InputError, match="one of the two"):
        FineTune(loss=CrossEntropy(), lr=1e-3, steps=1, adapter=LoRA(rank=1, alpha=1))
    with pytest.raises(InputError, match="target_modules"):
        configured("editor=lora", "editor.adapter.target_modules=[nowhere]").edit(lm, EDITS[:1])


def edited_in_bfloat16(**given: Any) -> tuple[list[bool], dict[str, Any]]:
    """Whether each of ten single edits by KDPO at the paper's rate succeeds, and the last report."""
    low = load(str(world.WEIGHTS), dtype="bfloat16")
    editor, made, report = FineTune(loss=KDPO(0.1), lr=1e-4, cycles=10, steps=8, layers=[3], **given), [], {}
    for case in world.cases(edits=10, limit=10).cases:
        [edit] = case.edits
        report = dict(editor.edit(low, [edit]))
        [scored] = low.answer([edit.prompt], [edit.target_new])
        made.append(scored.pred == scored.gold)
        low.restore()
    return made, report


def test_bfloat16_trains_a_float32_copy_of_the_weights() -> None:
    """Adam's steps of 1e-4 are lost on bfloat16 weights themselves, and nothing would say so."""
    made, report = edited_in_bfloat16()
    assert sum(made) >= 7  # 9 in float32
    assert report["moved_share"] > 0.9
    made, report = edited_in_bfloat16(trained_dtype="model")
    assert sum(made) == 0
    assert report["moved_share"] < 0.7


def test_the_float32_copy_is_part_of_the_state() -> None:
    low = load(str(world.WEIGHTS), dtype="bfloat16")
    editor = FineTune(loss=CrossEntropy(), lr=1e-5, steps=5, layers=[3])
    editor.edit(low, EDITS[:1])
    state = {name: value.clone() for name, value in low.state().items()}
    editor.edit(low, EDITS[1:2])
    straight = {name: value.clone() for name, value in low.state().items()}
    low.restore()
    low.load_state(state)
    editor.edit(low, EDITS[1:2])
    assert all(torch.equal(value, straight[name]) for name, value in low.state().items())


# --- adapters side by side --------------------------------------------------------------------------------------------


def changes_of(lm: LM, editor: FineTune) -> dict[str, torch.Tensor]:
    """B A of every matrix, or what was added to the weights."""
    state = editor.state()
    if not state:
        return {name: lm.parameter(name).detach() - original for name, original in lm.changes.originals.items()}
    return {name: state[name.replace("lora_A", "lora_B")] @ a for name, a in state.items() if "lora_A" in name}


@pytest.mark.parametrize(
    ("loss", "given"),
    [
        (CrossEntropy(), {"stop_loss": 2.0}),  # one ends long before another
        (CrossEntropy(), {"adapter": {"merge": True}, "stop_loss": 2.0}),
        (KDPO(beta=0.1), {"cycles": 2}),
        (DPO(beta=0.1), {"cycles": 2}),
        (Overtone(lam=0.1, epsilon=0.05, n=0.5, dyn=False), {}),
    ],
    ids=["stops", "merged", "kdpo", "dpo", "overtone"],
)
def test_an_adapter_trained_beside_others_is_that_of_an_edit_alone(lm: LM, loss: Loss, given: dict[str, Any]) -> None:
    """With dropout, whatever the padding and the size of the group; to the last bits of float64: in float32 Adam makes
    of rounding as much as of other gradients, where a new adapter has none."""
    lm = LM(copy.deepcopy(lm.model).double(), lm.text.tokenizer)
    adapter = LoRA(rank=2, alpha=4, dropout=0.2, **given.pop("adapter", {}))
    common = {"parameters": None, "adapter": adapter, "trained_dtype": "model"}
    editor = FineTune(loss=loss, lr=5e-3, steps=6, **common, **given)
    edits = EDITS[:3]
    alone, steps = [], []
    for i, edit in enumerate(edits):
        torch.manual_seed(i)
        steps.append(editor.edit(lm, [edit])["steps"])
        alone.append(changes_of(lm, editor))
        lm.restore()
        editor.reset()
    with lm.in_variants(len(edits)):
        jobs = [Job(editor.fork(), [edit], i, partial(torch.manual_seed, i)) for i, edit in enumerate(edits)]
        outcomes = editor.edit_side_by_side(lm, jobs)
        for i, job in enumerate(jobs):
            with lm.scope(i):
                beside = changes_of(lm, job.editor)
            assert beside.keys() == alone[i].keys()
            for name, change in alone[i].items():
                assert torch.allclose(beside[name], change, rtol=1e-6, atol=1e-10)
    assert [outcome["steps"] for outcome in outcomes] == steps  # type: ignore[index]
    assert lm.changed == []


def test_dropout_draws_belong_to_an_edit() -> None:
    """Neither what is padded nor what else is in the batch changes them, and edits that only wait draw nothing."""
    pairs = [Pair([1] * n, 1, Reading(variant=v)) for v, n in ((0, 4), (1, 6), (1, 5))]
    entered = torch.ones(3, 6, 8)

    def kept(side: Side, rows: slice, drawing: dict[int, Draws | None]) -> torch.Tensor:
        batch = collate(pairs[rows], 0, side, torch.device("cpu"))
        found = BatchDraws(batch, drawing).kept(entered[rows, : batch.ids.shape[1]], 0.5)
        return found[batch.mask]

    alone = kept("right", slice(1, 3), {1: Draws(7)})
    for side in ("right", "left"):
        assert torch.equal(kept(side, slice(0, 3), {0: Draws(3), 1: Draws(7)})[4:], alone)
        waits = kept(side, slice(0, 3), {1: Draws(7)})
        assert torch.equal(waits[4:], alone)
        assert bool((waits[:4] == 1).all())
    assert set(alone.unique().tolist()) == {0.0, 2.0}
