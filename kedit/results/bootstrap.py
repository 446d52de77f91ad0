"""How far a mean is to be believed: percentile bootstrap over cases, and over edit seeds where there are several.

Every draw is a function of the cases' ids (and of the seeds), so a table is the same each time it is made, and two
editors that were tested on the same cases get the same draws: the difference of their replicates is the paired
bootstrap of the difference.
"""

from collections.abc import Mapping
from functools import lru_cache
from zlib import crc32

import numpy as np
import pandas as pd

REPLICATES = 2000
LEVEL = 95  # per cent


@lru_cache(maxsize=4)
def draws(cases: tuple[str, ...], replicates: int = REPLICATES) -> np.ndarray:
    """How often each case is in each resampling of the cases, with replacement: (replicates, cases)."""
    n = len(cases)
    rng = np.random.default_rng(crc32("\n".join(cases).encode()))
    drawn = rng.integers(0, n, (replicates, n)) + n * np.arange(replicates)[:, None]
    return np.bincount(drawn.ravel(), minlength=replicates * n).reshape(replicates, n).astype(np.float32)


def resampled_means(values: pd.DataFrame) -> np.ndarray:
    """The mean of each column in each resampling of the lines: (replicates, columns).

    A case without a value does not count for that column; NaN where a resampling has none that does.
    """
    weights = draws(tuple(values.index))
    array = values.to_numpy(np.float32)
    known = np.isfinite(array)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights @ np.where(known, array, 0)) / (weights @ known.astype(np.float32))


def over_seeds(replicates: Mapping[int, np.ndarray]) -> np.ndarray:
    """Mean over a resampling of the seeds, of each seed's replicates.

    Seeds are drawn first, then the cases of each. Seeds that tested the same cases share the draw of cases: then cases
    and seeds are crossed, else cases lie within seeds.
    """
    seeds = sorted(replicates)
    stacked = np.stack([replicates[seed] for seed in seeds])
    rng = np.random.default_rng(crc32(repr(seeds).encode()))
    chosen = rng.integers(0, len(seeds), (stacked.shape[1], len(seeds)))
    return stacked[chosen, np.arange(stacked.shape[1])[:, None]].mean(axis=1)


def interval(replicates: np.ndarray) -> tuple[float, float]:
    """The ends of the 95 % percentile interval; NaN where there is nothing to draw from."""
    known = replicates[np.isfinite(replicates)]
    if not known.size:
        return np.nan, np.nan
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)
