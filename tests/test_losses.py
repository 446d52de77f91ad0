"""Algebra of the losses, without a model."""

import math

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from kedit.lm.text import Batch, Pair, collate
from kedit.losses.cross_entropy import CrossEntropy
from kedit.losses.kdpo import KDPO

CPU = torch.device("cpu")
PAIRS = [Pair([5, 6, 1, 2], 2), Pair([5, 3, 4, 0], 1)]  # answers (1, 2) and (3, 4, 0)


def example() -> tuple[Batch, Float[Tensor, "k v"]]:
    torch.manual_seed(0)
    return collate(PAIRS, 0, "right", CPU), torch.randn(5, 8, requires_grad=True)


def test_cross_entropy_is_the_mean_over_each_answers_tokens() -> None:
    batch, logits = example()
    logp = logits.log_softmax(-1)
    expected = [-(logp[0, 1] + logp[1, 2]) / 2, -(logp[2, 3] + logp[3, 4] + logp[4, 0]) / 3]
    assert torch.allclose(CrossEntropy()(batch, logits), torch.stack(expected))


def test_kdpo_is_ln_2_at_the_start_of_the_edit_and_only_there() -> None:
    batch, logits = example()
    loss = KDPO(beta=0.1)
    loss.refresh(batch, logits, cycle=0)
    assert loss(batch, logits).tolist() == pytest.approx([math.log(2)] * 2)
    moved = logits + torch.randn_like(logits)
    loss.refresh(batch, moved, cycle=1)
    assert all(value != pytest.approx(math.log(2), abs=1e-6) for value in loss(batch, moved).tolist())


def test_kdpo_has_no_gradient_where_the_model_already_says_the_new_token() -> None:
    batch, logits = example()
    with torch.no_grad():
        logits[0, 1] = 9.0  # the first answer token of row 0 is already the argmax
    loss = KDPO(beta=0.1)
    assert not loss.refresh(batch, logits, cycle=0)
    loss(batch, logits).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().max() == 0
    assert (logits.grad[1:].abs().amax(-1) > 0).all()


def test_kdpo_picks_the_argmax_and_is_done_when_it_is_the_answer() -> None:
    batch, logits = example()
    loss = KDPO(beta=0.1)
    assert not loss.refresh(batch, logits, cycle=0)
    assert torch.equal(loss.rejected, logits.argmax(-1))
    right = torch.nn.functional.one_hot(batch.gold, 8).float()
    assert loss.refresh(batch, right, cycle=1)


def test_kdpo_is_the_papers_formula_with_the_reference_of_the_start() -> None:
    batch, start = example()
    now = (start + 0.5 * torch.randn_like(start)).detach()
    loss = KDPO(beta=0.3)
    loss.refresh(batch, start, cycle=0)
    loss.refresh(batch, now, cycle=1)  # new negatives, the same reference
    rejected = now.argmax(-1)
    expected = []
    for rows in ([0, 1], [2, 3, 4]):
        h = sum(
            policy[j, batch.gold[j]] - policy[j, rejected[j]] - reference[j, batch.gold[j]] + reference[j, rejected[j]]
            for policy, reference in [(now.log_softmax(-1), start.detach().log_softmax(-1))]
            for j in rows
        )
        expected.append(math.log(1 + math.exp(-0.3 * h.item())))
    assert loss(batch, now).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_list_the_places_that_predict_the_answers(side: str) -> None:
    batch = collate([*PAIRS, Pair([7, 8, 9, 1, 2, 3], 5)], 0, side, CPU)  # type: ignore[arg-type]
    assert batch.gold.tolist() == [1, 2, 3, 4, 0, 3]
    assert batch.row.tolist() == [0, 0, 1, 1, 1, 2]
    assert batch.ids[batch.row, batch.col].tolist() == [6, 1, 5, 3, 4, 2]
    assert batch.mask.sum(-1).tolist() == [4, 4, 6]
    assert batch.mean(torch.tensor([1.0, 3, 1, 2, 3, 7])).tolist() == [2, 2, 7]
