"""Scores of a free answer of a strict profile: with its frame, its stop strings, its exact-match rule.

What must not change has four meanings, each with a column of its own: the unedited model's tokens, its text, the
answer by exact match, the answer by a judge. The profile says which of them tables show.
"""

import re
import string
from collections.abc import Iterable

from kedit.evaluation.metrics import Metric, StrictlyWritten


def normalise_ascii(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single blanks (EasyEdit, evaluate_utils.py: normalize_answer)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def equals_answer(text: str, answers: Iterable[str]) -> bool:
    """Is the whole text one of the answers, after `normalise_ascii`?"""
    return normalise_ascii(text) in {normalise_ascii(answer) for answer in answers}


# --- what rows and tables have ---------------------------------------------------------------------------------------


def _match(answer: StrictlyWritten) -> int | None:
    return int(answer.matches) if answer.unedited is None else None


def _judged(answer: StrictlyWritten) -> int | None:
    return None if answer.unedited is not None or answer.judged is None else int(answer.judged)


def _same_tokens(answer: StrictlyWritten) -> int | None:
    if answer.unedited is None:
        return None
    _, tokens, stopped_by = answer.unedited
    return int((list(answer.tokens), answer.stopped_by) == (list(tokens), stopped_by))


def _same_text(answer: StrictlyWritten) -> int | None:
    return None if answer.unedited is None else int(answer.text == answer.unedited[0])


def _gold_match(answer: StrictlyWritten) -> int | None:
    return None if answer.unedited is None else int(answer.matches)


def _gold_judged(answer: StrictlyWritten) -> int | None:
    return None if answer.unedited is None or answer.judged is None else int(answer.judged)


def _exact(answer: StrictlyWritten) -> int | None:
    return _match(answer) if answer.unedited is None else MEANINGS[answer.shows](answer)


def _by_judge(answer: StrictlyWritten) -> int | None:
    return _judged(answer) if answer.unedited is None else MEANINGS[answer.shows](answer)


MEANINGS = {
    "same_tokens": _same_tokens,
    "same_text": _same_text,
    "gold_match": _gold_match,
    "gold_judged": _gold_judged,
}
STRICT = Metric("strict", "strict", _exact, caption="strict free generation, exact match")
JUDGED = Metric("judged", "strict", _by_judge, caption="strict free generation, graded by a judge")
SAME_TOKENS = Metric("same_tokens", "strict", _same_tokens)
SAME_TEXT = Metric("same_text", "strict", _same_text)
GOLD_MATCH = Metric("gold_match", "strict", _gold_match)
GOLD_JUDGED = Metric("gold_judged", "strict", _gold_judged)
