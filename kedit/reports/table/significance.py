"""Which numbers of a table are not significantly worse than the best: 95 % paired bootstrap of the difference."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from kedit.results.bootstrap import interval

MARK = "†"
SAID = (
    f"{MARK}: not significantly worse than the best (95 % interval of the paired difference, no correction for several)"
)
Key = TypeVar("Key")


def tied(numbers: Mapping[Key, tuple[float, Any]], sign: int = 1) -> set[Key]:
    """Those that are not the best, and whose difference from the best has an interval that reaches 0. `numbers`: each
    one's value and its bootstrap replicates (those on the same cases are paired: they have the same draws), or none.
    sign -1: less is better."""
    known = {key: (value, drawn) for key, (value, drawn) in numbers.items() if isinstance(drawn, np.ndarray)}
    if not known:
        return set()
    best = max(numbers, key=lambda key: sign * numbers[key][0])
    if best not in known:
        return set()
    top, drawn_top = known[best]
    return {
        key for key, (value, drawn) in known.items() if value != top and interval(sign * (drawn_top - drawn))[0] <= 0
    }
