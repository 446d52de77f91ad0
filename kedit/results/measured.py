"""What the runs measured, as a tidy frame beside the papers' numbers: one line a number, with its interval.

Columns are those of kedit.papers, `low` and `high` (ends of the 95 % bootstrap interval; `ci` is half their distance),
`n` (cases, of all seeds together), `seeds` (how many), `by_seed` (each one's number), `failed` (edits), `directories`
(of the cells it rests on) and `replicates`: the bootstrap's, from which the interval of any function of several numbers
follows, paired where they are of the same cases.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kedit.papers import printed
from kedit.results.bootstrap import interval
from kedit.results.cells import Cell
from kedit.results.samples import Sample, SampleKey, samples
from kedit.results.scores import PAPER, Score

COLUMNS = "paper table model setting T dataset editor metric value ci note printed_as".split()
MORE = "low high n seeds by_seed failed directories replicates".split()
AVERAGE = "average"
KNOWEDIT_SETS = ("zsre", "wikibio", "wikidata_counterfact", "wikidata_recent")
WITHOUT = {("wikibio", "portability")}  # KnowEdit has no such questions: an average is over the others


def measured(
    cells: Sequence[Cell],
    paper: str,
    *,
    scoring: Score = "token",
    same_as: Mapping[str, str] | None = None,
    table: int | None = None,
) -> pd.DataFrame:
    """The tidy frame of these cells, with the paper's meaning of each metric and with the paper's averages.

    `same_as` says which printed editor a conf editor stands for; `table` says of which of the paper's tables.
    """
    return frame_of(samples(cells, paper, scoring=scoring, same_as=same_as), paper, table)


def frame_of(found: Sequence[Sample], paper: str, table: int | None = None) -> pd.DataFrame:
    lines = [line for sample in found for line in _lines(sample)] + list(_averages(found, paper, table))
    frame = pd.DataFrame(lines, columns=[*COLUMNS, *MORE])
    frame = frame.assign(paper=paper, table=pd.array([table] * len(frame), dtype="Int64"), note="", printed_as="")
    return frame.astype({"T": "Int64", "value": float, "ci": float, "low": float, "high": float})


def _lines(sample: Sample) -> Iterator[dict[str, Any]]:
    known = {"seeds": len(sample.seeds), "failed": sample.failed, "directories": [c.directory for c in sample.cells]}
    for found in numbers_of(sample):
        yield sample.key._asdict() | known | found
    for metric, value in sample.costs.items():
        yield sample.key._asdict() | known | number(metric, value, None, max(sample.n))


def numbers_of(sample: Sample) -> Iterator[dict[str, Any]]:
    """Each score of a sample that has a value: with its interval, and of each seed."""
    for i, metric in enumerate(sample.metrics):
        if math.isfinite(sample.values[i]):
            drawn = sample.replicates[:, i] if sample.n[i] > 1 else None
            by_seed = {seed: float(values[i]) for seed, values in sample.of_seeds.items()}
            yield {"by_seed": by_seed} | number(metric, sample.values[i], drawn, sample.n[i])


def number(metric: str, value: float, replicates: np.ndarray | None, n: int) -> dict[str, Any]:
    """One number with its interval; without replicates it has none."""
    low, high = (math.nan, math.nan) if replicates is None else interval(replicates)
    known = {"metric": metric, "value": float(value), "ci": (high - low) / 2, "low": low, "high": high}
    return known | {"n": n, "replicates": replicates}


# --- averages over datasets ------------------------------------------------------------------------------------------


def _averages(found: Sequence[Sample], paper: str, table: int | None) -> Iterator[dict[str, Any]]:
    """The paper's mean over its datasets, of editors that have run on all of them."""
    datasets = _averaged(paper, table)
    without_T = paper in PAPER and PAPER[paper].one_average
    groups: dict[SampleKey, dict[str, list[Sample]]] = {}
    for sample in found:
        key = sample.key._replace(dataset=AVERAGE, T=None if without_T else sample.key.T)
        groups.setdefault(key, {}).setdefault(sample.key.dataset, []).append(sample)
    for key, group in groups.items():
        if datasets and all(len(group.get(dataset, [])) == 1 for dataset in datasets):
            yield from _average(key, {dataset: group[dataset][0] for dataset in datasets})


def _averaged(paper: str, table: int | None) -> Sequence[str]:
    if paper not in PAPER:
        return ()
    rows = printed(paper, table)
    if AVERAGE not in set(rows["dataset"]):
        return ()
    named = [dataset for dataset in dict.fromkeys(rows["dataset"]) if dataset in KNOWEDIT_SETS]
    return named or KNOWEDIT_SETS


def _average(key: SampleKey, group: Mapping[str, Sample]) -> Iterator[dict[str, Any]]:
    some = next(iter(group.values()))
    known = {
        "seeds": min(len(sample.seeds) for sample in group.values()),
        "failed": sum(sample.failed for sample in group.values()),
        "directories": [cell.directory for sample in group.values() for cell in sample.cells],
    }
    for i, metric in enumerate(some.metrics):
        parts = [sample for dataset, sample in group.items() if (dataset, metric) not in WITHOUT]
        value = float(np.mean([sample.values[i] for sample in parts]))
        if math.isfinite(value):
            drawn = np.mean([sample.replicates[:, i] for sample in parts], axis=0)
            yield key._asdict() | known | number(metric, value, drawn, sum(sample.n[i] for sample in parts))
