"""Scores of a teacher-forced answer: one pass reads prompt and answer together."""

import math
from collections.abc import Sequence

from kedit.evaluation.metrics import Forced, Metric


def token_match(pred: Sequence[int], reference: Sequence[int]) -> float:
    """Share of answer tokens that are argmax under teacher forcing: mean over t of [pred_t = reference_t].

    With the gold answer as reference: reliability, generality, portability. With the unedited model's argmax ids:
    locality. docs/metrics.md §2.
    """
    if len(pred) != len(reference) or not pred:
        raise ValueError(
            f"{len(pred)} predicted and {len(reference)} reference tokens: both must be the same, at least 1"
        )
    return sum(p == r for p, r in zip(pred, reference, strict=True)) / len(pred)


def mean_nll(logprob: Sequence[float]) -> float:
    """Mean over an object's tokens of -log p, in nats: length-normalised, as in ROME."""
    return -sum(logprob) / len(logprob)


def success(right: float, other: float) -> bool:
    """Is the right object likelier than the one that competes with it? Of their mean NLLs; a tie fails.

    Right is the new object of an edit and of its paraphrases (ROME's ES and PS), the true one of a neighbour (NS).
    """
    return right < other


def magnitude(right: float, other: float) -> float:
    """exp(-NLL of the right object) - exp(-NLL of the other), in [-1, 1]: ROME's EM, PM and NM."""
    return math.exp(-right) - math.exp(-other)


# --- what rows and tables have ---------------------------------------------------------------------------------------


def _token(answer: Forced) -> float:
    return token_match(answer.pred, answer.reference)


def _right_nll(answer: Forced) -> float:
    return mean_nll(answer.logprob)


def _new_and_true(answer: Forced) -> tuple[float, float] | None:
    """Mean NLL of the new object and of the true one: a neighbour's right answer is the true one."""
    if answer.competing is None:
        return None
    right, other = mean_nll(answer.logprob), mean_nll(answer.competing)
    return (other, right) if answer.kind == "neighborhood" else (right, other)


def _nll_new(answer: Forced) -> float | None:
    both = _new_and_true(answer)
    return None if both is None else round(both[0], 6)


def _nll_true(answer: Forced) -> float | None:
    both = _new_and_true(answer)
    return None if both is None else round(both[1], 6)


def _success(answer: Forced) -> int | None:
    return None if answer.competing is None else int(success(_right_nll(answer), mean_nll(answer.competing)))


def _magnitude(answer: Forced) -> float | None:
    if answer.competing is None:
        return None
    return round(magnitude(_right_nll(answer), mean_nll(answer.competing)), 6)


TOKEN = Metric("token", "forced", _token, caption="teacher-forced token match")
EXACT = Metric("exact", "forced", lambda answer: int(_token(answer) == 1), caption="teacher-forced exact match")
NLL = Metric("nll", "forced", lambda answer: round(_right_nll(answer), 6))
NLL_NEW = Metric("nll_new", "forced", _nll_new)
NLL_TRUE = Metric("nll_true", "forced", _nll_true)
SUCCESS = Metric("success", "forced", _success, instead_of="token", kinds=("efficacy", "paraphrase", "neighborhood"))
MAGNITUDE = Metric(
    "magnitude",
    "forced",
    _magnitude,
    caption="probability of the right object less that of the competing one",
    is_share=False,
)
