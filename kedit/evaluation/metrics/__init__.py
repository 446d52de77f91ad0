"""Scores of one answer. A module of this folder declares everything about its metrics: the definition, the rows'
column, how it is asked, and what a table's caption says. To add one, add a file with a `Metric` (docs/metrics.md, §10).

Rows hold shares in [0, 1], and nats; tables multiply by 100.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Literal

from kedit.cases import Kind

Scoring = Literal["forced", "generate", "strict"]
TEXT_KINDS: tuple[Kind, ...] = ("fluency", "consistency")  # questions that ask for free text, not for an answer


@dataclass(frozen=True, slots=True)
class Forced:
    """One answer, teacher-forced."""

    kind: Kind
    pred: Sequence[int]  # the argmax at each answer token
    reference: Sequence[int]  # what it should be: the answer's tokens; of locality, the unedited model's argmax
    logprob: Sequence[float]  # log-probability of each answer token, in nats
    competing: Sequence[float] | None = None  # the same of the competing object


@dataclass(frozen=True, slots=True)
class Written:
    """One free text."""

    kind: Kind
    text: str
    acceptable: Sequence[str] = ()  # the strings that count
    every: Sequence[Sequence[str]] = ()  # if several objects must be named: the names of each
    contains: bool = False  # the text may go on before and after the answer
    unedited: str | None = None  # the unedited model's text, which is locality's reference


@dataclass(frozen=True, slots=True)
class StrictlyWritten:
    """One free text of a strict profile (kedit/evaluation/strict.py)."""

    kind: Kind
    text: str  # up to the first stop string
    tokens: Sequence[int]
    stopped_by: str
    matches: bool  # is it the answer, by the profile's exact-match rule?
    judged: bool | None = None  # by the first judge; None: there is none, or its reply has no verdict
    unedited: tuple[str, Sequence[int], str] | None = None  # locality's reference: text, tokens, stopped_by
    shows: str = ""  # the meaning of locality that tables show


@dataclass(frozen=True)
class Metric:
    """One score of an answer, and everything that is said of it.

    `grade` gives the score of a Forced, Written or StrictlyWritten answer, as `scoring` says; None if the answer has
    none. A metric whose `grade` is None is that of a case as a whole. `instead_of`: tables of that metric show this one
    for `kinds`.
    """

    name: str  # what `python -m kedit.table --scoring` calls it
    scoring: Scoring  # the way of asking that it needs
    grade: Callable[[Any], float | int | None] | None
    caption: str = ""  # words for a table that shows it; without them it is in rows only
    column: str = ""  # the rows' column; "": its name
    kinds: tuple[Kind, ...] = ()  # the only kinds of questions that have it; (): all
    instead_of: str = ""
    is_share: bool = True  # in [0, 1], so that a harmonic mean has a meaning

    @property
    def row_column(self) -> str:
        return self.column or self.name

    @property
    def of_texts(self) -> bool:
        """A score of what is written about an edit, not of an answer."""
        return bool(self.kinds) and not self.instead_of

    def asks(self, kind: str) -> bool:
        """Is an answer to a question of this kind scored so?"""
        return kind in self.kinds if self.of_texts else kind not in TEXT_KINDS


@cache
def metrics() -> dict[str, Metric]:
    """Every metric by its name, in the order of this folder's files."""
    modules = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]
    declared = [value for module in modules for value in vars(module).values() if isinstance(value, Metric)]
    return {metric.name: metric for metric in declared}


def captions() -> dict[str, str]:
    """The metrics that a table can show, and what its caption says."""
    return {metric.name: metric.caption for metric in metrics().values() if metric.caption and not metric.of_texts}


def grades(scoring: Scoring, answer: Forced | Written | StrictlyWritten) -> dict[str, float | int]:
    """Row columns and scores of one answer; what it has no score of is absent."""
    found = {}
    for metric in metrics().values():
        if metric.scoring == scoring and metric.grade is not None and metric.asks(answer.kind):
            found[metric.row_column] = metric.grade(answer)
    return {column: score for column, score in found.items() if score is not None}
