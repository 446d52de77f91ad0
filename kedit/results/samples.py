"""From cells to samples: one editor's case values, on one model, dataset, setting and T, of each seed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from kedit.common.errors import InputError
from kedit.results.bootstrap import over_seeds, resampled_means
from kedit.results.cells import Cell
from kedit.results.scores import PAPER, PLAIN, PaperMetrics, Score, by_case, combined

UNEDITED = "none"
COSTS = ("editing_hours", "inference_hours", "memory_gb")  # KEDAS's Table 7


class SampleKey(NamedTuple):
    """Which column of numbers: all that a table distinguishes besides the metric."""

    model: str
    setting: str
    T: int | None
    dataset: str
    editor: str


@dataclass(frozen=True)
class Sample:
    """One editor's case values, of each seed, and the cells they come from."""

    key: SampleKey
    seeds: Mapping[int, pd.DataFrame]  # case x metric
    measures: PaperMetrics
    score: Score
    cells: Sequence[Cell]
    failed: int = 0
    costs: Mapping[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        return list(self.measures.kinds) + ([self.measures.combined] if self.measures.combined else [])

    @cached_property
    def values(self) -> np.ndarray:
        """For each metric, the mean over seeds of each seed's score."""
        return np.mean(list(self.of_seeds.values()), axis=0)

    @cached_property
    def of_seeds(self) -> dict[int, np.ndarray]:
        """Each seed's score of each metric."""
        with np.errstate(all="ignore"):
            return {seed: self._scores(values.mean().to_numpy()[None])[0] for seed, values in self.seeds.items()}

    @cached_property
    def replicates(self) -> np.ndarray:
        """Each metric in each resampling of seeds and cases."""
        return over_seeds({seed: self._scores(resampled_means(values)) for seed, values in self.seeds.items()})

    @property
    def n(self) -> list[int]:
        """Cases that count for each metric, of all seeds; all cases for a combined one."""
        counts = sum(values.notna().sum() for values in self.seeds.values()).tolist()
        return counts + [sum(map(len, self.seeds.values()))] * (len(self.metrics) - len(counts))

    def _scores(self, means: np.ndarray) -> np.ndarray:
        if not self.measures.combined:
            return means
        whole = combined(means, list(self.measures.kinds), self.measures, self.score)
        return np.column_stack([means, whole])


# --- from cells ------------------------------------------------------------------------------------------------------


class Test(NamedTuple):
    """One cell's test at one T."""

    cell: Cell
    T: int  # the rows'
    last: bool  # the T that the cell was run for, not a checkpoint before it


def samples(
    cells: Iterable[Cell],
    paper: str | None = None,
    *,
    scoring: Score = "token",
    same_as: Mapping[str, str] | None = None,
) -> list[Sample]:
    """One for each editor, model, dataset, setting and T; the unedited model's once for each of the last four.

    A conf editor stands for a printed one (`same_as`) where that has not run itself.
    """
    measures = PAPER[paper] if paper else PLAIN
    tests = grouped_tests(cells, same_as)
    edited = [_sample(key, by_seed, measures, scoring, measures.costs) for key, by_seed in tests.items()]
    first = {key._replace(editor=UNEDITED): by_seed for key, by_seed in reversed(tests.items())}
    return [_sample(key, by_seed, measures, scoring) for key, by_seed in reversed(first.items())] + edited


def grouped_tests(cells: Iterable[Cell], same_as: Mapping[str, str] | None = None) -> dict[SampleKey, dict[int, Test]]:
    """The tests that fill each column of numbers, by seed."""
    cells = list(cells)
    ran = {cell.meta["editor"] for cell in cells}
    stand_in = {ours: theirs for ours, theirs in (same_as or {}).items() if theirs not in ran}
    tests: dict[SampleKey, dict[int, Test]] = {}
    for cell in cells:
        for key, test in _tests(cell, stand_in):
            _keep(tests.setdefault(key, {}), key, test)
    return tests


def asked_T(cell: Cell) -> int:
    """The T that the command asks for; the effective one if it asks for all."""
    T = cell.meta["T"]
    return T if isinstance(T, int) else cell.meta["effective_T"]


def tested_T(sample: "Sample") -> int:
    """The T of a sample's rows: the effective one where a dataset is shorter than the T of the command."""
    cell = sample.cells[0]
    return cell.meta["effective_T"] if asked_T(cell) == sample.key.T else int(sample.key.T or 0)


def _tests(cell: Cell, same_as: Mapping[str, str]) -> Iterator[tuple[SampleKey, Test]]:
    """Blocks of one are single editing, by definition."""
    meta = cell.meta
    rows = cell.rows
    for T in sorted(rows[rows["when"] == "test"]["T"].unique()):
        last = int(T) == meta["effective_T"]
        stands_for = asked_T(cell) if last else int(T)
        setting = "single" if meta["setting"] == "blocks" and stands_for == 1 else meta["setting"]
        editor = same_as.get(meta["editor"], meta["editor"])
        yield SampleKey(meta["model"], setting, stands_for, meta["dataset"], editor), Test(cell, int(T), last)


def _keep(by_seed: dict[int, Test], key: SampleKey, test: Test) -> None:
    """A cell that was run for this T comes before another's checkpoint; two of them cannot both fill a place."""
    seed = test.cell.meta["seed"]
    there = by_seed.get(seed)
    if there is None or (test.last and not there.last):
        by_seed[seed] = test
    elif test.last and there.last:
        raise InputError(
            f"{there.cell.directory} and {test.cell.directory} are both {key.editor} on {key.model}, {key.dataset}, "
            f"T={key.T}, seed {seed}; choose one with --options TEXT (the overrides, as in the directory), or give "
            "the table one of the directories"
        )


def _sample(
    key: SampleKey, by_seed: Mapping[int, Test], measures: PaperMetrics, scoring: Score, costs: bool = False
) -> Sample:
    unedited = key.editor == UNEDITED
    return Sample(
        key=key,
        seeds={seed: by_case(_rows(test, unedited), measures, scoring) for seed, test in sorted(by_seed.items())},
        measures=measures,
        score=scoring,
        cells=[test.cell for test in by_seed.values()],
        failed=0 if unedited else sum(map(failed_edits, by_seed.values())),
        costs=_costs(list(by_seed.values())) if costs else {},
    )


def _rows(test: Test, unedited: bool) -> pd.DataFrame:
    rows = test.cell.rows
    tested = rows[(rows["when"] == "test") & (rows["T"] == test.T)]
    return rows[(rows["when"] == "before") & rows["case"].isin(tested["case"])] if unedited else tested


def failed_edits(test: Test) -> int:
    """Edits that failed and were undone, up to this test."""
    return int(test.cell.steps_to(test.T)["failed"].sum()) if "failed" in test.cell.steps else 0


def _costs(tests: Sequence[Test]) -> dict[str, float]:
    """KEDAS's Table 7, of finished cells: hours of editing and of asking, gigabytes at the peak; mean over seeds."""
    metas = [test.cell.meta for test in tests if test.last and "seconds" in test.cell.meta]
    if len(metas) < len(tests):
        return {}
    found = {
        "editing_hours": [meta["seconds"]["edit"] / 3600 for meta in metas],
        "inference_hours": [meta["seconds"]["evaluate"] / 3600 for meta in metas],
        "memory_gb": [meta["peak_memory_mb"] / 1024 for meta in metas],
    }
    return {name: float(np.mean(values)) for name, values in found.items()}
