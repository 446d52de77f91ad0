"""From rows to scores: every mean, of one run.

A score is the mean over cases of [the mean over the case's groups of (the mean over the group's probes)], times 100
("case_macro", docs/metrics.md); a case without a probe of a kind does not count for that kind, and every mean carries
its N.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd

from kedit.cases import KNOWEDIT
from kedit.metrics import half_width, harmonic_mean

Score = Literal["token", "exact", "generate", "magnitude"]
Merge = Literal["case_macro", "group_macro", "prompt_micro"]

FLOOR = "(unedited)"
COLUMNS = {  # a probe's kind -> the papers' word for its score
    "reliability": "edit success",
    "generality": "generality",
    "portability": "portability",
    "locality": "locality",
    "efficacy": "efficacy",
    "paraphrase": "paraphrase",
    "neighborhood": "neighborhood",
    "fluency": "fluency",
    "consistency": "consistency",
}
HM = ("reliability", "locality", "portability")  # KEDAS's, as far as the dataset has them
SCORE = ("efficacy", "paraphrase", "neighborhood")  # ROME's: of all three
_SOURCES = {
    "token": ("token", "forced"),
    "exact": ("exact", "forced"),
    "generate": ("exact", "generate"),
    "magnitude": ("magnitude", "forced"),
}
_TEXTS = {"fluency": ("entropy", "generate"), "consistency": ("cosine", "generate")}


def summary(
    rows: pd.DataFrame | Sequence[dict[str, Any]],
    *,
    score: Score = "token",
    merge: Merge = "case_macro",
    kinds: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Scores of one run: a line for the unedited model and one for each T.

    Columns as in the papers, of the `kinds` that were asked (null: the default ones and all that the rows have), and
    for each kind n_<kind>, its number of cases; where one of ROME's three was asked also ci_<kind>, the half-width of
    its mean's 95 % confidence interval.
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows)
    asked = {*KNOWEDIT, *frame["kind"]} if kinds is None else {*kinds}
    shown = [kind for kind in COLUMNS if kind in asked]
    tests = frame[frame["when"] == "test"]
    lines = [_line(FLOOR, 0, frame[frame["when"] == "before"], shown, score, merge)]
    lines += [_line("edited", int(T), group, shown, score, merge) for T, group in tests.groupby("T")]
    return pd.DataFrame(lines)


def _line(model: str, T: int, rows: pd.DataFrame, kinds: Sequence[str], score: Score, merge: Merge) -> dict[str, Any]:
    values = {kind: per_case(rows, kind, score, merge) for kind in kinds}
    means = {kind: float(found.mean()) for kind, found in values.items()}
    line: dict[str, Any] = {"model": model, "T": T} | {COLUMNS[kind]: mean for kind, mean in means.items()}
    if not means.keys().isdisjoint(HM):
        parts = [means[kind] for kind in HM if kind in values and len(values[kind])]
        line["HM"] = harmonic_mean(parts) if parts else math.nan
    if not means.keys().isdisjoint(SCORE):
        three = [means.get(kind, math.nan) for kind in SCORE]
        if score != "magnitude":  # of shares only
            line["Score"] = math.nan if any(map(math.isnan, three)) else harmonic_mean(three)
        line |= {f"ci_{kind}": half_width(found.tolist()) for kind, found in values.items()}
    return line | {"N": rows["case"].nunique()} | {f"n_{kind}": len(found) for kind, found in values.items()}


def per_case(rows: pd.DataFrame, kind: str, score: Score = "token", merge: Merge = "case_macro") -> pd.Series:
    """One value (x100) for each case that has probes of this kind; for other merges one for each group or probe.

    "token" is success where the rows of one of ROME's three kinds have it, and token match elsewhere.
    """
    column, scoring = _TEXTS.get(kind, _SOURCES[score])
    chosen = rows[(rows["kind"] == kind) & (rows["scoring"] == scoring)]
    if column not in chosen:
        return pd.Series(dtype=float)
    if score == "token" and kind in SCORE and "success" in chosen:
        chosen = chosen.assign(token=chosen["success"].fillna(chosen["token"]))
    chosen = chosen[chosen[column].notna()]
    if chosen.empty:
        return pd.Series(dtype=float)
    if merge == "prompt_micro":
        return 100 * chosen[column]
    groups = chosen.groupby(["step", "case", "group"])[column].mean()
    return 100 * groups.groupby("group" if merge == "group_macro" else ["step", "case"]).mean()
