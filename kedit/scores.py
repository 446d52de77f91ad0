"""From rows to scores: every mean, of one run.

A score is the mean over cases of [the mean over the case's groups of (the mean over the group's probes)], times 100
("case_macro", docs/metrics.md); a case without a probe of a kind does not count for that kind, and every mean carries
its N.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd

from kedit.metrics import harmonic_mean

Score = Literal["token", "exact", "generate"]
Merge = Literal["case_macro", "group_macro", "prompt_micro"]

FLOOR = "(unedited)"
COLUMNS = {  # a probe's kind -> the papers' word for its score
    "reliability": "edit success",
    "generality": "generality",
    "portability": "portability",
    "locality": "locality",
    "fluency": "fluency",
}
_SOURCES = {"token": ("token", "forced"), "exact": ("exact", "forced"), "generate": ("exact", "generate")}


def summary(
    rows: pd.DataFrame | Sequence[dict[str, Any]], *, score: Score = "token", merge: Merge = "case_macro"
) -> pd.DataFrame:
    """Scores of one run: a line for the unedited model and one for each T; columns as in the papers, and n_<kind>."""
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows)
    tests = frame[frame["when"] == "test"]
    lines = [_line(FLOOR, 0, frame[frame["when"] == "before"], score, merge)]
    lines += [_line("edited", int(T), group, score, merge) for T, group in tests.groupby("T")]
    return pd.DataFrame(lines)


def _line(model: str, T: int, rows: pd.DataFrame, score: Score, merge: Merge) -> dict[str, Any]:
    line: dict[str, Any] = {"model": model, "T": T}
    for kind, name in COLUMNS.items():
        values = per_case(rows, kind, score, merge)
        line |= {name: float(values.mean()), f"n_{kind}": len(values)}
    parts = [line[COLUMNS[kind]] for kind in ("reliability", "locality", "portability") if line[f"n_{kind}"]]
    return line | {"HM": harmonic_mean(parts) if parts else math.nan, "N": rows["case"].nunique()}


def per_case(rows: pd.DataFrame, kind: str, score: Score = "token", merge: Merge = "case_macro") -> pd.Series:
    """One value (x100) for each case that has probes of this kind; for other merges one for each group or probe."""
    column, scoring = ("entropy", "generate") if kind == "fluency" else _SOURCES[score]
    chosen = rows[(rows["kind"] == kind) & (rows["scoring"] == scoring)]
    if chosen.empty or column not in chosen:
        return pd.Series(dtype=float)
    if merge == "prompt_micro":
        return 100 * chosen[column]
    groups = chosen.groupby(["step", "case", "group"])[column].mean()
    return 100 * groups.groupby("group" if merge == "group_macro" else ["step", "case"]).mean()
