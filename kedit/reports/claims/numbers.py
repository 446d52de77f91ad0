"""What a claim is written in: the numbers of a tidy frame, and the comparisons of editors in them.

A comparison is made at a place (model, setting, T, dataset, metric), and at every place that the frame has and the
claim's words allow: `higher("kdpo", "ft_m", metric="locality", T=100)` gives one comparison for each model and dataset
with such numbers. A condition is a value, several values, or a function of the value; dataset="average" is asked for by
name, else it is left out.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kedit.reports.claims.estimates import (
    Comparison,
    Estimate,
    Real,
    absent,
    all_of,
    exactly,
    greater,
    mean,
    not_run,
    positive,
    share,
)

AVERAGE, UNEDITED = "average", "none"
COSTS = {"editing_hours", "inference_hours", "memory_gb"}  # costs of one run have no interval
Names = str | Sequence[str]
Where = dict[str, Any]


class Condition(NamedTuple):
    """Where editors can be compared."""

    model: str
    setting: str
    T: int | None
    dataset: str
    metric: str

    def __str__(self) -> str:
        shown = [self.model, self.setting, f"T={self.T}" if self.T is not None else "", self.dataset, self.metric]
        return ", ".join(part for part in shown if part)


class Numbers:
    """The numbers of one paper. Printed ones are `exact`; ours have intervals, and averages over the datasets there."""

    def __init__(self, frame: pd.DataFrame, *, exact: bool, printed_editors: Iterable[str], T_in_average: bool = True):
        self.exact = exact
        self.printed_editors = {*printed_editors} - {UNEDITED}
        self.known: dict[tuple[Condition, str], Estimate] = {}
        needed = [
            name
            for name in (*Condition._fields, "editor", "value", "low", "high", "row", "replicates")
            if name in frame
        ]
        for row in frame[frame["value"].notna()][needed].to_dict("records"):
            place = Condition(row["model"], row["setting"], _T(row["T"]), row["dataset"], row["metric"])
            self.known.setdefault((place, row["editor"]), self._quantity(row))
        if not exact:
            self._average(T_in_average)

    def _quantity(self, row: dict[str, Any]) -> Estimate:
        """Without an interval nothing is known of a measured score; a measured cost is taken as it is."""
        value, low, high = (float(row.get(name, math.nan)) for name in ("value", "low", "high"))
        if self.exact or row["metric"] in COSTS:
            low = high = value
        elif math.isnan(low) or math.isnan(high):
            low, high = -math.inf, math.inf
        drawn = row.get("replicates")
        return Estimate(value, low, high, (row["row"],), drawn=drawn if isinstance(drawn, np.ndarray) else None)

    def _average(self, T_in_average: bool) -> None:
        """Add the mean over datasets of each editor that has all datasets that any editor has there."""
        parts: dict[tuple[Condition, str], dict[str, Estimate]] = {}
        for (place, editor), number in self.known.items():
            if place.dataset != AVERAGE:
                T = place.T if T_in_average else None
                parts.setdefault((place._replace(dataset=AVERAGE, T=T), editor), {})[place.dataset] = number
        every: dict[Condition, set[str]] = {}
        for (place, _), datasets in parts.items():
            every.setdefault(place, set()).update(datasets)
        for (place, editor), datasets in parts.items():
            if datasets.keys() == every[place]:
                self.known.setdefault((place, editor), mean(list(datasets.values())))

    # --- what is there ---

    def at(self, place: Condition, editor: str) -> Estimate:
        """The editor's number there; an unedited model may have been asked without a setting and a T."""
        for there in (place, place._replace(setting="", T=None)):
            if (there, editor) in self.known:
                return self.known[there, editor]
        return absent(f"{editor} on {place}")

    def minus(self, place: Condition, a: str, b: str, times: Real = 1) -> Estimate:
        """a - times b."""
        return self.at(place, a) - times * self.at(place, b)

    def places(self, *editors: str, **where: Any) -> list[Condition]:
        """Where one of these editors (none given: any) has a number and the place meets all conditions."""
        where = {"dataset": lambda dataset: dataset != AVERAGE} | where
        found = [place for place, editor in self.known if not editors or editor in editors]
        return [p for p in dict.fromkeys(found) if all(_meets(getattr(p, key), want) for key, want in where.items())]

    def with_suffix(self, suffix: str, **where: Any) -> list[str]:
        """Editors that are there, with and without the suffix, at such places."""
        places = {*self.places(**where)}
        there = {editor for place, editor in self.known if place in places}
        editors = dict.fromkeys(editor for _, editor in self.known if editor in there)
        return [editor for editor in editors if editor + suffix in editors]

    def recomputed(self, metric: str, parts: Sequence[str]) -> "Numbers":
        """Printed numbers with this metric taken as the mean of the printed parts; ours as they are."""
        if not self.exact:
            return self
        new = copy(self)
        new.known = dict(self.known)
        for place, editor in self.known:
            there = [self.known.get((place._replace(metric=part), editor)) for part in parts]
            found = [number for number in there if number]
            if place.metric == metric and found:
                new.known[place, editor] = mean(found)
        return new

    def rivals(self, place: Condition, editor: str, besides: Names = ()) -> list[str]:
        """The other editors of the paper's tables that have a number there, the best first."""
        left_out = {editor, *_names(besides)}
        found = [name for there, name in self.known if there == place and name in self.printed_editors - left_out]
        return sorted(found, key=lambda name: -self.known[place, name].value)

    # --- comparisons, one for each place ---

    def over(self, compare: Callable[[Condition], Comparison], *editors: str, **where: Any) -> list[Comparison]:
        """`compare` at each place of these editors that has all its numbers; if none has, what was not run."""
        found = [compare(place) for place in self.places(*editors, **where)]
        said = [f"{key}={want}" for key, want in where.items() if not callable(want)]
        nowhere = not_run(" ".join([" or ".join(editors) or "any editor", *said]))
        return [comparison for comparison in found if not comparison.missing] or found or [nowhere]

    def higher(
        self, a: Names, b: Names, *, by: Real = 0, times: Real = 1, ties: bool = False, **where: Any
    ) -> list[Comparison]:
        """a > b (with `ties` >=), b taken so many `times` and plus `by`; each pair where several are named."""

        sign, factor, margin = ">=" if ties else ">", f"{times:g} x " * (times != 1), f" {by:+g}" * (by != 0)

        def compare(x: str, y: str, place: Condition) -> Comparison:
            text = f"{place}: {self._said(place, x)} {sign} {factor}{self._said(place, y)}{margin}"
            return positive(text, self.minus(place, x, y, times) - exactly(by), ties=ties)

        pairs = [(x, y) for x in _names(a) for y in _names(b)]
        return [c for x, y in pairs for c in self.over(partial(compare, x, y), x, y, **where)]

    def within(self, points: Real, a: Names, b: Names, **where: Any) -> list[Comparison]:
        """a not more than so many points below b."""
        return self.higher(a, b, by=-points, ties=True, **where)

    def best(
        self, a: str, *, times: Real = 1, ties: bool = False, besides: Names = (), **where: Any
    ) -> list[Comparison]:
        """a above each other editor of the paper's tables that is there; `times`: above so many times its number."""

        factor = f"{times:g} x " * (times != 1)

        def compare(place: Condition, rivals: list[str]) -> Comparison:
            text = f"{place}: {self._said(place, a)} above {factor}all others, best {self._said(place, rivals[0])}"
            return all_of(text, [positive(text, self.minus(place, a, b, times), ties=ties) for b in rivals])

        return self._against_rivals(compare, a, besides, **where)

    def rank(self, a: str, rank: int, *, besides: Names = (), **where: Any) -> list[Comparison]:
        """Among the editors there (see `best`) all but rank - 1 are below a."""

        def compare(place: Condition, rivals: list[str]) -> Comparison:
            wins = [positive(self._said(place, b), self.minus(place, a, b)) for b in rivals]
            asked = f"{place}: {self._said(place, a)} above all others but {rank - 1}"
            wanted = (len(rivals) - rank + 1) / len(rivals)
            return share(asked, wins, at_least=wanted, below=wanted + 0.5 / len(rivals))

        return self._against_rivals(compare, a, besides, **where)

    def leads(self, a: str, low: Real, high: Real, **where: Any) -> list[Comparison]:
        """a is ahead of the best other editor by a stated size (see `reaches`)."""

        def compare(place: Condition, rivals: list[str]) -> Comparison:
            text = f"{place}: {self._said(place, a)} ahead of {self._said(place, rivals[0])} by {low:g} to {high:g}"
            return self.reaches(text, self.minus(place, a, rivals[0]), low, high)

        return self._against_rivals(compare, a, **where)

    def _against_rivals(
        self, compare: Callable[[Condition, list[str]], Comparison], a: str, besides: Names = (), **where: Any
    ) -> list[Comparison]:
        def found(place: Condition) -> Comparison:
            rivals = self.rivals(place, a, besides)
            return compare(place, rivals) if rivals else not_run(f"an editor besides {a} on {place}")

        return self.over(found, a, **where)

    def _said(self, place: Condition, editor: str) -> str:
        return f"{editor} {self.at(place, editor)}"

    def reaches(self, text: str, number: Estimate, low: Real, high: Real) -> Comparison:
        """A stated size: a printed number lies in [low, high] (bounds of rounding); one of ours is at least low."""
        parts = [greater(text, number, exactly(low), ties=True)]
        parts += [greater(text, exactly(high), number, ties=True)] if self.exact else []
        return all_of(f"{text}: {number}", parts)

    def mean_gain(self, a: str, b: str, stated: Real, **where: Any) -> list[Comparison]:
        """The mean over places of a - b is the stated one, which has one decimal."""
        places = [place for place in self.places(a, **where) if (place, b) in self.known]
        text = f"mean gain of {a} over {b} in {len(places)} cells (stated: {stated:g})"
        gain = mean([self.minus(place, a, b) for place in places]) if places else absent(f"{a} and {b} {where}")
        return [self.reaches(text, gain, stated - 0.05, stated + 0.05)]


def _T(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)


def _names(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _meets(value: Any, want: Any) -> bool:
    if callable(want):
        return bool(want(value))
    return value in want if isinstance(want, (tuple, list, set)) else value == want
