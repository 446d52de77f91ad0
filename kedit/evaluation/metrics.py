"""Definitions of the scores: pure functions, each with its equation. Rows hold shares in [0, 1]; tables multiply by
100."""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any


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


def half_width(values: Sequence[float]) -> float:
    """Of the mean's 95 % confidence interval: 1.96 * std / sqrt(n), std with n in the denominator as ROME has it.

    Unknown for fewer than two values.
    """
    n = len(values)
    if n < 2:
        return math.nan
    mean = sum(values) / n
    return 1.96 * math.sqrt(sum((value - mean) ** 2 for value in values) / n) / math.sqrt(n)


def ngram_entropy(text: str) -> float:
    """H_2/3 + 2·H_3/3, H_n the entropy in bits of the text's n-gram frequencies. Fluency of ROME (docs/metrics.md §4).

    About 6.2 for 100 tokens of natural text, low for repetition; 0 for texts of fewer than two words.
    """
    text = unicodedata.normalize("NFKD", text).replace("\n\n", " ").replace("<|endoftext|>", "")
    words = _tokenizer().tokenize(text)
    return _entropy(words, 2) / 3 + 2 * _entropy(words, 3) / 3


@cache
def _tokenizer() -> Any:
    from nltk.tokenize import NLTKWordTokenizer  # two seconds to import, and tables need none

    return NLTKWordTokenizer()


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = sum(counts.values())
    return -sum(c / total * math.log2(c / total) for c in counts.values()) if counts else 0.0


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


def harmonic_mean(values: Sequence[float]) -> float:
    """n / sum(1/v); 0 when any component is 0. KEDAS's HM is that of (reliability, locality, portability), ROME's Score
    that of (efficacy, paraphrase, neighborhood)."""
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)
