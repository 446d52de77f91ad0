"""Scores of a free answer: the prompt continued greedily."""

import re
import string
import unicodedata
from collections.abc import Iterable

from kedit.evaluation.metrics import Metric, Written


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single blanks: SQuAD's answer normalisation."""
    text = "".join(c for c in unicodedata.normalize("NFKC", text).lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(generated: str, answers: Iterable[str]) -> bool:
    """Does the free continuation say one of the answers and then stop?

    The continuation ends at a line break; it may go on after a full stop ("Paris. It is ..." says "Paris").
    """
    line = generated.strip().split("\n")[0]
    ends = [match.start() for match in re.finditer(r"\.(?=\s|$)", line)] + [len(line)]
    said = {normalise(line[:end]) for end in ends}
    return any(normalise(answer) in said for answer in answers)


def contains_answer(generated: str, answers: Iterable[str]) -> bool:
    """Is one of the answers a part of the free text, whatever its letter case? OVERTONE's rule for MQuAKE."""
    return any(answer.strip().lower() in generated.lower() for answer in answers if answer.strip())


# --- what rows and tables have ---------------------------------------------------------------------------------------


def _exact(answer: Written) -> int:
    """Locality: is the text the unedited model's? Other kinds: does it say, or contain, an acceptable string?"""
    if answer.unedited is not None:
        return int(normalise(answer.text) == normalise(answer.unedited))
    right = contains_answer if answer.contains else exact_match
    return int(all(right(answer.text, names) for names in answer.every or (answer.acceptable,)))


GENERATE = Metric("generate", "generate", _exact, column="exact", caption="free greedy generation")
