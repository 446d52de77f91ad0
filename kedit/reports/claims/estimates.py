"""Numbers with intervals, and comparisons that may not be decided."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kedit.results.bootstrap import interval

Real = int | float


@dataclass(frozen=True)
class Estimate:
    """A number, the interval it is known to, and the rows of the frame that it rests on.

    `drawn`: the number in each resampling of cases and seeds. What is computed from several numbers is computed in each
    resampling, so it is paired where they are of the same cases; without `drawn` they are taken as independent. A
    printed number is its own interval. A number that is not there is NaN and says in `missing` what is to be run.
    """

    value: float
    low: float
    high: float
    cells: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()
    drawn: np.ndarray | None = field(default=None, compare=False, repr=False)

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The difference; of independent numbers half-widths add in squares."""
        value = round(self.value - other.value, 9)  # 92.9 - 92.8 is 0.1
        if self.drawn is not None and (other.drawn is not None or other.exact):
            return _known(value, self.drawn - (other.value if other.drawn is None else other.drawn), self, other)
        if other.drawn is not None and self.exact:
            return _known(value, self.value - other.drawn, self, other)
        below = math.hypot(self.value - self.low, other.high - other.value)
        above = math.hypot(self.high - self.value, other.value - other.low)
        return Estimate(value, value - below, value + above, *_both(self, other))

    def __rmul__(self, factor: Real) -> "Estimate":
        low, high = sorted((factor * self.low, factor * self.high))
        drawn = None if self.drawn is None else factor * self.drawn
        return Estimate(factor * self.value, low, high, self.cells, self.missing, drawn)

    @property
    def exact(self) -> bool:
        return self.low == self.high

    def __str__(self) -> str:
        if self.missing:
            return "(not run)"
        return f"{self.value:.4g}" + ("" if self.exact else f" [{self.low:.4g}, {self.high:.4g}]")


def exactly(value: Real) -> Estimate:
    return Estimate(float(value), float(value), float(value))


def absent(what: str) -> Estimate:
    return Estimate(math.nan, math.nan, math.nan, missing=(what,))


def mean(parts: Sequence[Estimate]) -> Estimate:
    """The mean of several numbers; half-widths of independent ones add in squares."""
    value = sum(part.value for part in parts) / len(parts)
    drawn = [part.drawn for part in parts if part.drawn is not None]
    if len(drawn) == len(parts):
        return _known(value, np.mean(drawn, axis=0), *parts)
    below = math.hypot(*(part.value - part.low for part in parts)) / len(parts)
    above = math.hypot(*(part.high - part.value for part in parts)) / len(parts)
    return Estimate(value, value - below, value + above, *_both(*parts))


def _known(value: float, drawn: np.ndarray, *parts: Estimate) -> Estimate:
    return Estimate(value, *interval(drawn), *_both(*parts), drawn)


@dataclass(frozen=True)
class Comparison:
    """One statement about numbers: true, false, or (None) not to be told from them.

    `missing` is what was not run; `parts` are the statements that one about how many are true counts.
    """

    text: str
    outcome: bool | None
    cells: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()
    parts: "tuple[Comparison, ...]" = ()


def not_run(what: str) -> Comparison:
    return Comparison(what, None, missing=(what,))


def greater(text: str, left: Estimate, right: Estimate, *, ties: bool = False) -> Comparison:
    """Is left above right? With `ties`: is it not below?"""
    return positive(text, left - right, ties=ties)


def positive(text: str, number: Estimate, *, ties: bool = False) -> Comparison:
    """True where the whole interval is above 0, false where none of it is; with `ties` 0 counts as above."""
    if number.missing:
        return Comparison(text, None, number.cells, number.missing)
    low, high = round(number.low, 9), round(number.high, 9)
    surely, never = (low >= 0, high < 0) if ties else (low > 0, high <= 0)
    return Comparison(text, True if surely else False if never else None, number.cells)


def all_of(text: str, parts: Sequence[Comparison]) -> Comparison:
    """One statement of several: false where one of them is, true where all are."""
    outcomes = [part.outcome for part in parts]
    outcome = False if False in outcomes else None if None in outcomes else True
    return Comparison(text, outcome, *_both(*parts))


def share(asked: str, parts: Sequence[Comparison], *, at_least: Real = 0, below: Real = math.inf) -> Comparison:
    """One statement of how many are true: at least this share of them, and fewer than that one.

    What is missing is not counted.
    """
    known = [part for part in parts if not part.missing]
    if not known:
        return all_of(asked, parts)
    sure = sum(part.outcome is True for part in known)
    possible = sure + sum(part.outcome is None for part in known)
    holds = [at_least - 1e-9 <= n / len(known) < below - 1e-9 for n in range(sure, possible + 1)]
    count = f"{sure}" if sure == possible else f"{sure} to {possible}"
    rarer = [part.text for part in known if part.outcome is (2 * sure <= len(known))]
    text = "; ".join([f"{count} of {len(known)} (asked: {asked})", *rarer])
    return Comparison(text, True if all(holds) else None if any(holds) else False, *_both(*known), parts=tuple(parts))


def _both(*parts: Estimate | Comparison) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Cells and missing of all parts, each once."""
    cells = dict.fromkeys(cell for part in parts for cell in part.cells)
    missing = dict.fromkeys(what for part in parts for what in part.missing)
    return tuple(cells), tuple(missing)
