"""What pictures show: scores of cases by editor and T, their means and intervals."""

import json
import re
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import pandas as pd

from kedit.common.errors import InputError
from kedit.results.bootstrap import interval, over_seeds, resampled_means
from kedit.results.cells import Cell
from kedit.results.scores import UNEDITED_ROW, per_case

KNOWN = (("reliability", "generality", "portability", "locality"), ("efficacy", "paraphrase", "neighborhood"))
BOTH = "prompt and paraphrases"  # KDPO's edit success (§4)


class Nothing(InputError):
    """These cells have nothing to show in this picture; says why."""


def together(cells: Sequence[Cell], same: Sequence[str]) -> dict[str, list[Cell]]:
    """Sets of cells that share all of these, by a text of what sets them apart."""
    keys = [{key: cell.meta.get(key) for key in same} for cell in cells]
    apart = [key for key in same if len({json.dumps(values[key], sort_keys=True) for values in keys}) > 1]
    sets: dict[str, list[Cell]] = {}
    for cell, values in zip(cells, keys, strict=True):
        sets.setdefault("-".join(_short(values[key]) for key in apart), []).append(cell)
    return sets


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    text = re.sub(r"[^\w.=-]+", "_", text).strip("_") or "plain"
    return text if len(text) <= 40 else sha256(text.encode()).hexdigest()[:8]


def editors(cells: Sequence[Cell]) -> list[str]:
    """In the order of the cells."""
    return list(dict.fromkeys(cell.meta["editor"] for cell in cells))


def scores(cells: Sequence[Cell]) -> pd.DataFrame:
    """One line a tested case, x100: index editor, T, seed, step, case; a column a kind, and BOTH.

    The unedited model's lines have T = 0; where several cells of a seed have them, those of the most cases. Raises
    Nothing where nothing was tested.
    """
    parts = {}
    for cell in cells:
        editor, seed, tests = cell.meta["editor"], cell.meta["seed"], cell.rows[cell.rows["when"] == "test"]
        for T, rows in tests.groupby("T"):
            parts[editor, int(T), seed] = _by_case(rows)
        floor = _by_case(cell.rows[cell.rows["when"] == "before"])
        if len(floor) > len(parts.get((UNEDITED_ROW, 0, seed), ())):
            parts[UNEDITED_ROW, 0, seed] = floor
    if all(editor == UNEDITED_ROW for editor, _, _ in parts):
        raise Nothing("nothing was tested yet")
    return pd.concat(parts, names=["editor", "T", "seed", "step", "case"])


def _by_case(rows: pd.DataFrame) -> pd.DataFrame:
    kinds = [*(kind for kinds in KNOWN for kind in kinds), "fluency", "consistency"]
    found = {kind: per_case(rows, kind) for kind in kinds}
    found[BOTH] = per_case(rows, ("reliability", "generality"))
    frames = [values.rename(kind) for kind, values in found.items() if len(values)]
    return pd.concat(frames, axis=1) if frames else pd.DataFrame()


def kinds_of(frame: pd.DataFrame) -> list[str]:
    """KnowEdit's kinds, or ROME's where those were asked; only those that the data has."""
    return next((found for kinds in KNOWN if (found := [kind for kind in kinds if kind in frame])), [])


def resampled(frame: pd.DataFrame) -> np.ndarray:
    """Means of the columns over cases drawn again, [replicates columns]; over seeds first, where there are several."""
    by_seed = {seed: resampled_means(_cases(lines)) for seed, lines in frame.groupby("seed")}
    return over_seeds(by_seed) if len(by_seed) > 1 else next(iter(by_seed.values()))


def _cases(lines: pd.DataFrame) -> pd.DataFrame:
    return lines.set_axis(lines.index.get_level_values("case"))


def spread(value: float, replicates: np.ndarray) -> tuple[list[float], list[float]]:
    """How far the 95 % interval goes below and above the value, as an error bar has it."""
    low, high = interval(replicates)
    return [max(0.0, value - low)], [max(0.0, high - value)]


def horizons(frame: pd.DataFrame) -> list[int]:
    """The T of edited models."""
    return sorted({T for T in frame.index.get_level_values("T") if T})
