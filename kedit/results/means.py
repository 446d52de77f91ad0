"""Means of scores, and how sure they are."""

import math
from collections.abc import Sequence


def half_width(values: Sequence[float]) -> float:
    """Half-width of the mean's 95 % confidence interval: 1.96 * std / sqrt(n), n in the denominator as in ROME.

    Unknown for fewer than two values.
    """
    n = len(values)
    if n < 2:
        return math.nan
    mean = sum(values) / n
    return 1.96 * math.sqrt(sum((value - mean) ** 2 for value in values) / n) / math.sqrt(n)


def harmonic_mean(values: Sequence[float]) -> float:
    """n / sum(1/v); 0 when any component is 0. KEDAS's HM is that of (reliability, locality, portability), ROME's Score
    that of (efficacy, paraphrase, neighborhood)."""
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)
