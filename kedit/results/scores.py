"""From rows to scores: every mean, of one run.

A score is the mean over cases of [the mean over the case's groups of (the mean over the group's probes)], times 100
("case_macro", docs/metrics.md); a group's probes may also count as one, by the best or the worst of them (`fold`). A
case without a probe of a kind does not count for that kind, and every mean carries its N.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from kedit.cases import KNOWEDIT
from kedit.evaluation.metrics import TEXT_KINDS, Metric, metrics
from kedit.results.columns import COLUMNS, HM, SCORE
from kedit.results.means import half_width, harmonic_mean

Score = str  # the name of a metric (kedit/evaluation/metrics)
Merge = Literal["case_macro", "group_macro", "prompt_micro"]

UNEDITED_ROW = "(unedited)"
FOLDS = {"mean": "mean", "any": "max", "all": "min"}  # how a case's probes of one kind and group become one number
_ONE: Mapping[str, Callable[[Sequence[float]], float]] = {"mean": fmean, "any": max, "all": min}


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
    part = frame["T"].where(frame["when"] == "test", 0).where(frame["when"].isin(["before", "test"]))
    values = _values(frame.assign(part=part), score, merge, ("part",))
    found = {place: series.tolist() for place, series in values.groupby(["part", "kind"])["value"]}
    cases = frame.groupby(part)["case"].nunique()
    parts = [0, *(int(T) for T in cases.index if T)]
    return pd.DataFrame(
        [_line(T, int(cases.get(T, 0)), {k: found.get((T, k), []) for k in shown}, score) for T in parts]
    )


def _line(T: int, n: int, values: Mapping[str, Sequence[float]], score: Score) -> dict[str, Any]:
    """A table's line from the values of each kind; T 0: the unedited model's."""
    means = {kind: fmean(found) if found else math.nan for kind, found in values.items()}
    line: dict[str, Any] = {"model": "edited" if T else UNEDITED_ROW, "T": T}
    line |= {COLUMNS[kind]: mean for kind, mean in means.items()}
    if not means.keys().isdisjoint(HM):
        parts = [means[kind] for kind in HM if values.get(kind)]
        line["HM"] = harmonic_mean(parts) if parts else math.nan
    if not means.keys().isdisjoint(SCORE):
        three = [means.get(kind, math.nan) for kind in SCORE]
        if metrics()[score].is_share:
            line["Score"] = math.nan if any(map(math.isnan, three)) else harmonic_mean(three)
        line |= {f"ci_{kind}": half_width(found) for kind, found in values.items()}
    return line | {"N": n} | {f"n_{kind}": len(found) for kind, found in values.items()}


def per_case(
    rows: pd.DataFrame, kind: str | Sequence[str], score: Score = "token", merge: Merge = "case_macro"
) -> pd.Series:
    """One value (x100) for each case that has probes of this kind, in order; for other merges one for each group or
    probe.

    "token" is success where the rows of one of ROME's three kinds have it, and token match elsewhere. The probes of
    several kinds together count as those of one group.
    """
    if not isinstance(kind, str):
        together = rows[rows["kind"].isin(kind)].assign(kind=kind[0], group="")
        return per_case(together, kind[0], score, merge)
    found = _values(rows[rows["kind"] == kind], score, merge)
    over = [name for name in ("step", "case", "group") if name in found]
    return found.sort_values(over).set_index(over)["value"] if len(found) else pd.Series(dtype=float)


def _values(rows: pd.DataFrame, score: Score, merge: Merge, by: Sequence[str] = ()) -> pd.DataFrame:
    """The values (x100) of every kind, and whose they are: of each case (columns step, case) by default. With Arrow, at
    a tenth of what pandas takes for some thousand rows."""
    columns = ["kind", "scoring", "step", "case", "group", *by, *{*_columns(score), "fold"} & {*rows}]
    table = pa.Table.from_pandas(rows[columns], preserve_index=False)
    table = table.append_column("value", _value_of(table, score)).filter(pc.field("value").is_valid())
    if merge != "prompt_micro":
        over = ["group"] if merge == "group_macro" else ["step", "case"]
        table = _mean(_folded(table, [*by, "kind", "step", "case", "group"]), [*by, "kind", *over])
    frame = table.to_pandas()
    return frame.assign(value=100 * frame["value"])


def _mean(table: pa.Table, keys: Sequence[str]) -> pa.Table:
    return table.group_by(list(keys)).aggregate([("value", "mean")]).rename_columns({"value_mean": "value"})


def _folded(table: pa.Table, keys: Sequence[str]) -> pa.Table:
    """One value for each of `keys`: the mean of its probes, or what their `fold` says."""
    if "fold" not in table.column_names:
        return _mean(table, keys)
    table = table.set_column(table.column_names.index("fold"), "fold", table["fold"].cast(pa.string()))
    found = table.group_by([*keys, "fold"]).aggregate([("value", how) for how in FOLDS.values()])
    value = found["value_mean"]
    for fold, how in FOLDS.items():
        value = pc.if_else(pc.fill_null(pc.equal(found["fold"], fold), False), found[f"value_{how}"], value)
    return found.append_column("value", value)


def _sources(score: Score) -> list[Metric]:
    """Where a row's value is found, the first that it has: what the score's tables show instead of it for some kinds;
    fluency and consistency, the same however answers are scored; the score itself."""
    instead = [metric for metric in metrics().values() if metric.instead_of == score]
    texts = [metric for metric in metrics().values() if metric.of_texts]
    return [*instead, *texts, metrics()[score]]


def _columns(score: Score) -> list[str]:
    """The rows' columns that hold a score."""
    return [metric.row_column for metric in _sources(score)]


def _value_of(table: pa.Table, score: Score) -> pa.ChunkedArray:
    """Each row's score; null where it is of another scoring, or has none."""
    kind, scoring, names = table["kind"], table["scoring"], table.column_names
    none = pa.chunked_array([pa.nulls(len(table), pa.float64())])

    def taken(metric: Metric) -> pa.ChunkedArray:
        among = pc.is_in(kind, pa.array([*(metric.kinds or TEXT_KINDS)], pa.string()))
        where = pc.and_(pc.equal(scoring, metric.scoring), among if metric.kinds else pc.invert(among))
        column = metric.row_column
        return pc.if_else(where, table[column].cast(pa.float64()), none) if column in names else none

    return pc.coalesce(*map(taken, _sources(score)))


def mean_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean over cases (x100) of each kind that these rows have: that of `per_case`, of rows as the run makes them.

    A table has the same number; of a single step's few rows it is computed without a frame, in a fraction of the time.
    """
    groups: dict[str, dict[tuple[Any, ...], list[float]]] = {}
    folds: dict[tuple[Any, ...], str] = {}
    sources = _sources("token")
    for row in rows:
        kind = row["kind"]
        if (value := _value(row, sources)) is None:
            continue
        groups.setdefault(kind, {}).setdefault((row["step"], row["case"], row["group"]), []).append(value)
        folds[kind, row["step"], row["case"], row["group"]] = row.get("fold", "mean")
    for kind, of_kind in groups.items():
        for place, values in of_kind.items():
            of_kind[place] = [_ONE[folds[kind, *place]](values)]
    return {kind: 100 * fmean(_cases(of_kind).values()) for kind, of_kind in sorted(groups.items(), key=_column)}


def _value(row: Mapping[str, Any], sources: Sequence[Metric]) -> float | None:
    """One row's value, of the first of these metrics that it has; None if it has none."""
    for metric in sources:
        asks = row["kind"] in metric.kinds if metric.kinds else metric.asks(row["kind"])
        value = row.get(metric.row_column) if asks and row["scoring"] == metric.scoring else None
        if value is not None and not math.isnan(value):
            return float(value)
    return None


def _cases(groups: Mapping[tuple[Any, ...], Sequence[float]]) -> dict[tuple[Any, ...], float]:
    """The mean over each case's groups of their means."""
    cases: dict[tuple[Any, ...], list[float]] = {}
    for (step, case, _), values in groups.items():
        cases.setdefault((step, case), []).append(fmean(values))
    return {case: fmean(means) for case, means in cases.items()}


def _column(item: tuple[str, Any]) -> int:
    return list(COLUMNS).index(item[0])


# --- what each paper's columns mean ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PaperMetrics:
    """A paper's metrics: of which kinds' probes (x `scale`), and the one that is combined from others."""

    kinds: Mapping[str, str | tuple[str, ...]]
    combined: str | None = None
    parts: tuple[str, ...] = ()
    combine: Callable[[Sequence[float]], float] = harmonic_mean
    partial: bool = True  # combined from the parts that the dataset has; else only from all
    scale: Mapping[str, float] = field(default_factory=dict)
    said: str = ""  # in a caption
    costs: bool = False  # its tables print hours and memory
    one_average: bool = False  # the average over datasets has no T: each dataset has its own number of edits
    scored: Mapping[str, Score] = field(default_factory=dict)  # those that are always scored in one way
    said_of: Mapping[str, str] = field(default_factory=dict)  # in a caption that has the metric


_KNOWEDIT = {"edit_success": "reliability", "portability": "portability", "locality": "locality"}
PAPER: dict[str, PaperMetrics] = {
    "kdpo": PaperMetrics(
        {**_KNOWEDIT, "edit_success": ("reliability", "generality"), "fluency": "fluency"},  # §4
        scale={"fluency": 0.01},
        said="edit success = the edit's prompt and its paraphrases together, as the paper's text has it; "
        "fluency = n-gram entropy",
    ),
    "kedas": PaperMetrics(
        {**_KNOWEDIT, "fluency": "fluency"},
        combined="hm",
        parts=("edit_success", "locality", "portability"),
        costs=True,
        one_average=True,
        said="edit success = reliability; HM = harmonic mean of the scores that the dataset has; "
        "fluency = n-gram entropy x100",
    ),
    "overtone": PaperMetrics(
        {
            "edit_success": "reliability",
            "generality": "generality",
            **_KNOWEDIT,
            "one_hop": "one_hop",
            "two_hop": "multi_hop",
        },
        combined="avg",
        parts=("edit_success", "generality", "portability", "locality", "one_hop", "two_hop"),
        combine=fmean,
        said="reliability = the edit's prompt; Avg. = arithmetic mean of the scores that the dataset has",
        scored={"one_hop": "generate", "two_hop": "generate"},
        said_of={"two_hop": "1-Hop and 2-Hop = a free answer contains the answer, 2-Hop in any of its wordings"},
    ),
    "ft_editing": PaperMetrics(
        {
            "efficacy": "efficacy",
            "generalization": "paraphrase",
            "locality": "neighborhood",
            "fluency": "fluency",
            "consistency": "consistency",
        },
        combined="score",
        parts=("efficacy", "generalization", "locality"),
        partial=False,
        said="Score = harmonic mean of efficacy, generalization and locality; fluency and consistency x100",
    ),
}
# how the paper's numbers were made, if its text says otherwise: a sweep's table.scored_as, or --scored-as
PAPER["kdpo_released"] = replace(
    PAPER["kdpo"],
    kinds={**PAPER["kdpo"].kinds, "edit_success": "reliability"},
    said="edit success = the edit's prompt alone, as KDPO's scripts score the printed numbers (its section 4 counts "
    "paraphrases too: --scored-as kdpo); fluency = n-gram entropy",
)


def profiles(paper: str) -> list[str]:
    """The readings of a paper's metrics: its text's, and what its code does instead."""
    return [name for name in PAPER if name == paper or name.startswith(f"{paper}_")]


# no paper's: every kind by its own name
PLAIN = PaperMetrics({name.replace(" ", "_"): kind for kind, name in COLUMNS.items()}, "hm", ("edit_success", *HM[1:]))


def by_case(rows: pd.DataFrame, measures: PaperMetrics, score: Score = "token") -> pd.DataFrame:
    """One line a case, one column a metric; NaN where a case has no probe of it. What a bootstrap draws from."""
    asked = {*rows["kind"]}
    found = {
        name: per_case(rows, kind, measures.scored.get(name, score))
        for name, kind in measures.kinds.items()
        if not asked.isdisjoint([kind] if isinstance(kind, str) else kind)
    }
    columns = {
        name: values.droplevel("step") * measures.scale.get(name, 1) for name, values in found.items() if len(values)
    }
    cases = pd.Index(sorted(rows["case"].unique()), name="case")
    return pd.DataFrame(columns, index=cases, columns=list(measures.kinds), dtype=float)


def combined(means: np.ndarray, names: Sequence[str], measures: PaperMetrics, score: Score = "token") -> np.ndarray:
    """The combined metric of each line of means (columns: `names`); NaN where it is not defined."""
    has = [name for name in measures.parts if name in names and not np.isnan(means[:, names.index(name)]).all()]
    if not has or (len(has) < len(measures.parts) and not measures.partial) or not metrics()[score].is_share:
        return np.full(len(means), np.nan)
    return np.array([measures.combine(line) for line in means[:, [names.index(name) for name in has]].tolist()])
