"""Algebra of the losses, on logits made up for the test."""

import math

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from kedit.cases import Edit
from kedit.lm import LM
from kedit.lm.text import Pair, collate
from kedit.lm.trained import nothing_trained
from kedit.losses import LossInputs
from kedit.losses.cross_entropy import CrossEntropy
from kedit.losses.dpo import DPO, PreferNewAnswer
from kedit.losses.kdpo import KDPO
from kedit.losses.overtone import Overtone
from kedit.losses.prompt_last import PromptLast

CPU = torch.device("cpu")
PAIRS = [Pair([5, 6, 1, 2], 2), Pair([5, 3, 4, 0], 1)]  # answers (1, 2) and (3, 4, 0)


@pytest.fixture
def view(lm: LM) -> LossInputs:
    """Of the two answers, at the start of an edit."""
    return LossInputs(lm, [], collate(PAIRS, 0, "right", CPU), nothing_trained())


@pytest.fixture
def logits() -> Float[Tensor, "k v"]:
    torch.manual_seed(0)
    return torch.randn(5, 8, requires_grad=True)


def later(view: LossInputs) -> LossInputs:
    """The same after something was trained."""
    view.start.moved = True
    return view


def test_cross_entropy_is_the_mean_over_each_answers_tokens(view: LossInputs, logits: Tensor) -> None:
    logp = logits.log_softmax(-1)
    expected = [-(logp[0, 1] + logp[1, 2]) / 2, -(logp[2, 3] + logp[3, 4] + logp[4, 0]) / 3]
    assert torch.allclose(CrossEntropy()(view, logits), torch.stack(expected))


def test_kdpo_is_ln_2_at_the_start_of_the_edit_and_only_there(view: LossInputs, logits: Tensor) -> None:
    loss = KDPO(beta=0.1)
    loss.refresh(view, logits, cycle=0)
    assert loss(view, logits).tolist() == pytest.approx([math.log(2)] * 2)
    moved = logits + torch.randn_like(logits)
    loss.refresh(view, moved, cycle=1)
    assert all(value != pytest.approx(math.log(2), abs=1e-6) for value in loss(view, moved).tolist())


def test_kdpo_has_no_gradient_where_the_model_already_says_the_new_token(view: LossInputs, logits: Tensor) -> None:
    with torch.no_grad():
        logits[0, 1] = 9.0  # the first answer token of row 0 is already the argmax
    loss = KDPO(beta=0.1)
    assert loss.refresh(view, logits, cycle=0).tolist() == [False, False]
    loss(view, logits).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().max() == 0
    assert (logits.grad[1:].abs().amax(-1) > 0).all()


def test_kdpo_picks_the_argmax_and_is_done_when_it_is_the_answer(view: LossInputs, logits: Tensor) -> None:
    loss = KDPO(beta=0.1)
    assert loss.refresh(view, logits, cycle=0).tolist() == [False, False]
    assert torch.equal(loss.rejected, logits.argmax(-1))
    right = torch.nn.functional.one_hot(view.batch.gold, 8).float()
    assert loss.refresh(view, right, cycle=1).tolist() == [True, True]
    right[0] = logits[0].detach()
    assert loss.refresh(view, right, cycle=2).tolist() == [False, True]


def test_of_rows_that_go_on_the_losses_keep_their_own(view: LossInputs, logits: Tensor) -> None:
    """KDPO and static OVERTONE, whose other edits have ended: the value of the row that is left does not change."""
    places = torch.tensor([2, 3, 4])
    alone = LossInputs(view.lm, [], collate(PAIRS[1:], 0, "right", CPU), view.start)
    losses = (KDPO(beta=0.3), Overtone(0.1, 0.0, 0.5, dyn=False, chk=False))
    for loss in losses:
        loss.refresh(view, logits, cycle=0)
    for loss in losses:
        before = loss(later(view), 2 * logits)[1]
        loss.keep(alone, torch.tensor([1]), places)
        assert torch.allclose(loss(alone, 2 * logits[places]), before)


def test_kdpo_is_the_papers_formula_with_the_reference_of_the_start(view: LossInputs, logits: Tensor) -> None:
    start, batch = logits, view.batch
    now = (start + 0.5 * torch.randn_like(start)).detach()
    loss = KDPO(beta=0.3)
    loss.refresh(view, start, cycle=0)
    loss.refresh(view, now, cycle=1)  # new negatives, the same reference
    rejected = now.argmax(-1)
    expected = []
    for rows in ([0, 1], [2, 3, 4]):
        h = sum(
            policy[j, batch.gold[j]] - policy[j, rejected[j]] - reference[j, batch.gold[j]] + reference[j, rejected[j]]
            for policy, reference in [(now.log_softmax(-1), start.detach().log_softmax(-1))]
            for j in rows
        )
        expected.append(math.log(1 + math.exp(-0.3 * h.item())))
    assert loss(view, now).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_list_the_places_that_predict_the_answers(side: str) -> None:
    batch = collate([*PAIRS, Pair([7, 8, 9, 1, 2, 3], 5)], 0, side, CPU)  # type: ignore[arg-type]
    assert batch.gold.tolist() == [1, 2, 3, 4, 0, 3]
    assert batch.row.tolist() == [0, 0, 1, 1, 1, 2]
    assert batch.ids[batch.row, batch.col].tolist() == [6, 1, 5, 3, 4, 2]
    assert batch.mask.sum(-1).tolist() == [4, 4, 6]
    assert batch.mean(torch.tensor([1.0, 3, 1, 2, 3, 7])).tolist() == [2, 2, 7]


# --- masks -----------------------------------------------------------------------------------------------------------


def test_masks_choose_the_trained_tokens() -> None:
    pair = Pair([5, 1, 6, 1, 2], 3)  # the answer's first token also occurs in the prompt
    lists = {mask: collate([pair], 0, "right", CPU, mask=mask).gold.tolist() for mask in ("positional", "none")}
    assert lists == {"positional": [1, 2], "none": [1, 6, 1, 2]}
    assert collate([pair], 0, "left", CPU, mask="token_membership").gold.tolist() == [1, 1, 2]


# --- FT-L ------------------------------------------------------------------------------------------------------------


def test_prompt_last_asks_every_token_at_the_prompts_end(view: LossInputs, logits: Tensor) -> None:
    logp = logits.log_softmax(-1)
    expected = [-(logp[0, 1] + logp[0, 2]) / 2, -(logp[2, 3] + logp[2, 4] + logp[2, 0]) / 3]
    assert torch.allclose(PromptLast()(view, logits), torch.stack(expected))


def test_prompt_last_can_train_the_tokenizers_special_tokens_too(view: LossInputs, logits: Tensor) -> None:
    assert view.lm.text.special_ids == [0]
    logp = logits.log_softmax(-1)
    expected = [-(logp[0, 1] + logp[0, 2] + logp[0, 0]) / 3, -(logp[2, 3] + logp[2, 4] + 2 * logp[2, 0]) / 4]
    assert torch.allclose(PromptLast(train_special_tokens=True)(view, logits), torch.stack(expected))


# --- OVERTONE --------------------------------------------------------------------------------------------------------


def test_overtone_without_smoothing_and_clipping_is_cross_entropy(view: LossInputs, logits: Tensor) -> None:
    ours, theirs = Overtone(1.0, 0.0, 0.5)(view, logits), CrossEntropy()(view, logits)
    assert torch.allclose(ours, theirs)
    [gradient], [expected] = (torch.autograd.grad(loss.sum(), logits, retain_graph=True) for loss in (ours, theirs))
    assert torch.allclose(gradient, expected)


def test_overtone_leaves_a_token_within_epsilon_alone(view: LossInputs) -> None:
    logits = torch.zeros(5, 8)
    logits[0, 1] = 20.0  # learnt
    logits.requires_grad_(True)
    Overtone(0.1, 0.01, 0.5)(view, logits).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().max() == 0
    assert (logits.grad[1:].abs().amax(-1) > 0).all()


def test_overtone_has_no_gradient_at_all_once_every_token_is_within_epsilon(view: LossInputs) -> None:
    logits = (20.0 * torch.nn.functional.one_hot(view.batch.gold, 8)).requires_grad_(True)
    loss, unclipped = Overtone(0.1, 0.01, 0.5), Overtone(0.1, 0.01, 0.5, clip=False)
    assert loss(view, logits).tolist() == pytest.approx([0.01, 0.01])
    assert loss.idle().tolist() == [True, True]
    unclipped(view, logits)
    assert not unclipped.idle().any()


def test_overtones_target_is_the_papers_equation_3(view: LossInputs) -> None:
    gold = torch.tensor([0, 2])
    logits = torch.tensor([[2.0, 1.9, 0.0, -3.0], [2.0, 1.9, 0.0, -3.0]])
    kept = torch.tensor([2.0, 1.9]).softmax(-1)  # within half a standard deviation of the maximum
    target = Overtone(0.1, 0.01, 0.5).target(logits, gold)
    assert torch.allclose(target[0], torch.tensor([0.1 + 0.9 * kept[0], 0.9 * kept[1], 0, 0]))
    assert target[1].tolist() == [0, 0, 1, 0]  # the mixture would say another token
    unchecked = Overtone(0.1, 0.01, 0.5, chk=False).target(logits, gold)
    assert torch.allclose(unchecked[1], torch.tensor([0.9 * kept[0], 0.9 * kept[1], 0.1, 0]))
    unfiltered = Overtone(0.1, 0.01, 0.5, flt=False).target(logits, gold)
    assert torch.allclose(unfiltered[0], 0.1 * torch.eye(4)[0] + 0.9 * logits[0].softmax(-1))


def test_overtone_without_dyn_mixes_with_the_model_as_the_edit_found_it(view: LossInputs, logits: Tensor) -> None:
    static, dynamic = Overtone(0.1, 0.0, 0.5, dyn=False, chk=False), Overtone(0.1, 0.0, 0.5, chk=False)
    static.refresh(view, logits, cycle=0)
    assert torch.allclose(static(view, logits), dynamic(view, logits), atol=1e-6)
    moved = logits + torch.randn_like(logits)
    static.refresh(later(view), moved, cycle=1)
    target = static.target(logits.detach(), view.batch.gold)
    kl = torch.nn.functional.kl_div(moved.log_softmax(-1), target, reduction="none").sum(-1)
    assert torch.allclose(static(view, moved), view.batch.mean(kl), atol=1e-5)


# --- DPO: on the world's model, whose start-of-edit weights it asks for -----------------------------------------------


def facts(lm: LM) -> LossInputs:
    edits = [Edit("Aaron lives in", "Paris", None, "London"), Edit("The capital is", "Oslo")]
    batch = lm.encode([e.prompt for e in edits], [e.target_new for e in edits])
    return LossInputs(lm, edits, batch, nothing_trained())


def test_dpos_rejected_answer_is_generated_and_has_its_own_context(lm: LM) -> None:
    """Figure 2 of KDPO's paper: DPO reads y_l after c + y_l, KDPO after c + y_w; before the first token both read c."""
    view = facts(lm)
    logits = view.logits()
    dpo, kdpo = DPO(beta=0.1), KDPO(beta=0.1)
    dpo.refresh(view, logits, cycle=0)
    kdpo.refresh(view, logits, cycle=0)
    own, given = iter(dpo.rejected.gold.tolist()), iter(kdpo.rejected.tolist())
    for new, said in zip(view.batch.pairs, dpo.rejected.pairs, strict=True):
        assert said.prompt == new.prompt
        assert len(said.answer) == len(new.answer)
        own_tokens, given_tokens = ([next(tokens) for _ in new.answer] for tokens in (own, given))
        written = lm.generate([lm.text.decode(new.prompt)], len(new.answer), stop=False)[0].text
        assert lm.text.decode(own_tokens) == written
        assert own_tokens[0] == given_tokens[0]
    assert dpo(view, view.logits(dpo.reads(view))).tolist() == pytest.approx([math.log(2)] * 2, abs=1e-6)


def test_the_preference_for_the_new_answer_is_added_where_the_old_one_is_known(lm: LM) -> None:
    view = facts(lm)
    logits = view.logits()
    loss = PreferNewAnswer(CrossEntropy(), alpha=0.3, beta=0.5)
    assert not loss.refresh(view, logits, cycle=0)
    plain = CrossEntropy()(view, logits)
    assert loss(view, logits).tolist() == pytest.approx([0.3 * plain[0].item() + 0.7 * math.log(2), plain[1].item()])
