"""Scores of the text that a model writes about an edit: fluency, and consistency (kedit/evaluation/consistency.py)."""

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from kedit.evaluation.metrics import Metric


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


# --- what rows and tables have ---------------------------------------------------------------------------------------

FLUENCY = Metric(
    "entropy",
    "generate",
    lambda answer: round(ngram_entropy(answer.text), 6),
    kinds=("fluency",),
    caption="fluency = n-gram entropy x100",
)
CONSISTENCY = Metric(  # scores all texts of a case together
    "cosine",
    "generate",
    None,
    kinds=("consistency",),
    caption="consistency = TF-IDF cosine with reference texts x100",
)
