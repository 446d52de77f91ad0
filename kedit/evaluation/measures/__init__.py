"""Measures of the whole model, whatever was edited: perplexity, benchmarks. See docs/ability.md."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kedit.cases import BENCHMARK
from kedit.lm import LM

Row = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """What one measure found in one state of the model.

    `rows`: one a number. `numbers`: for the step's record and the dashboard. `items`: one a question, for a file of
    their own.
    """

    rows: list[Row] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    items: list[Row] = field(default_factory=list)

    def __add__(self, other: "Measurement") -> "Measurement":
        return Measurement(self.rows + other.rows, self.numbers | other.numbers, self.items + other.items)


class Measure:
    """Asks a model something that no edit is about: before the first edit, and at every test.

    `each_restore`: also at tests after which the model is restored (setting=single, blocks), once for each.
    """

    each_restore: bool = False
    needs_tests: bool = False  # a run whose every test is followed by a restore is a mistake, unless `each_restore`

    def prepare(self) -> None:
        """Before a model is loaded: read what is asked. Raises InputError if that cannot be had."""

    def description(self) -> Mapping[str, Any]:
        """What is asked, JSON-able, for meta.json and captions: by name of the number's group."""
        return {}

    def __call__(self, lm: LM, held_out: str) -> Measurement:
        """Measure `lm` as it is. `held_out`: the dataset's text that no edit is about."""
        raise NotImplementedError


def row(group: str, scoring: str, metric: str, value: float, **more: Any) -> Row:
    """A row of a measure; it belongs to no case."""
    known = {"kind": BENCHMARK, "group": group, "scoring": scoring, "metric": metric, "value": value}
    return known | {name: number for name, number in more.items() if number is not None}
