"""Two editors on the same cases: the mean difference with its paired bootstrap interval."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from kedit.common.errors import InputError
from kedit.reports.table.captions import facts, failures
from kedit.reports.table.formats import DASH, Grid, Line, TableCell
from kedit.reports.table.layout import named
from kedit.results.cells import Cell
from kedit.results.measured import frame_of, number
from kedit.results.samples import Sample, samples
from kedit.results.scores import PAPER, Score

STUBS = ("model", "dataset", "setting", "T", "metric")


def compare(
    cells: Sequence[Cell], one: str, other: str, paper: str | None = None, score: Score = "token"
) -> pd.DataFrame:
    """One line a metric, model, dataset, setting and T: both means, their difference and its interval, on how many
    cases and seeds; of the cases and seeds that both have."""
    found = [sample for sample in samples(cells, paper, scoring=score) if sample.key.editor in (one, other)]
    pairs = list(_pairs(found, one, other))
    lines = [line for pair in pairs for line in _lines(*pair)]
    if pairs and not lines:
        raise InputError(f"{one} and {other} have no rows for --scoring {score}")
    if not lines:
        ran = sorted({cell.meta["editor"] for cell in cells})
        raise InputError(
            f"{one} and {other} have no case in common on one model, dataset, setting and T; there are {', '.join(ran)}"
        )
    return pd.DataFrame(lines).drop(columns="replicates").rename(columns={"value": "difference"})


def _pairs(found: Sequence[Sample], one: str, other: str) -> Iterator[tuple[Sample, Sample]]:
    """Both restricted to what they share: then they have the same draws, and are paired."""
    second = {sample.key: sample for sample in found if sample.key.editor == other}
    for sample in found:
        partner = second.get(sample.key._replace(editor=other))
        if sample.key.editor != one or partner is None:
            continue
        shared = {
            seed: sample.seeds[seed].index.intersection(partner.seeds[seed].index).sort_values()
            for seed in sample.seeds.keys() & partner.seeds.keys()
        }
        shared = {seed: cases for seed, cases in sorted(shared.items()) if len(cases)}
        if shared:
            a, b = ({s: chosen.seeds[s].loc[cases] for s, cases in shared.items()} for chosen in (sample, partner))
            yield _same_gaps(replace(sample, seeds=a), replace(partner, seeds=b))


def _same_gaps(one: Sample, other: Sample) -> tuple[Sample, Sample]:
    """A case counts for a metric only where both have it."""
    both = {seed: one.seeds[seed].notna() & other.seeds[seed].notna() for seed in one.seeds}
    a, b = ({seed: sample.seeds[seed].where(both[seed]) for seed in both} for sample in (one, other))
    return replace(one, seeds=a), replace(other, seeds=b)


def _lines(one: Sample, other: Sample) -> Iterator[dict[str, Any]]:
    place = one.key._asdict() | {"editor": one.key.editor, "versus": other.key.editor, "seeds": len(one.seeds)}
    for i, metric in enumerate(one.metrics):
        a, b = float(one.values[i]), float(other.values[i])
        if np.isfinite(a - b):
            drawn = one.replicates[:, i] - other.replicates[:, i] if one.n[i] > 1 else None
            yield place | {"one": a, "other": b} | number(metric, a - b, drawn, one.n[i])


def grid(
    frame: pd.DataFrame, cells: Sequence[Cell], paper: str | None, score: Score, profile: str | None = None
) -> Grid:
    """`profile`: the reading of the paper's metrics (default: its text's)."""
    profile = profile or paper
    one, other = frame["editor"].iloc[0], frame["versus"].iloc[0]
    chosen = [cell for cell in cells if cell.meta["editor"] in (one, other)]
    there = frame_of(samples(chosen, profile, scoring=score), paper or "")
    said = [
        f"difference: {one} less {other}, on the same cases",
        "interval: 95 %, paired bootstrap over cases, and over edit seeds where there are several",
        "bold: it excludes 0",
        *facts(there[there["editor"].isin([one, other])], chosen, score),
        *([PAPER[profile].said] if profile else []),
        *failures(there),
    ]
    columns = tuple((name,) for name in (one, other, "difference", "interval", "cases", "seeds"))
    lines = tuple(_line(record, paper or "") for record in frame.to_dict("records"))
    return Grid(f"{one} versus {other}", STUBS, columns, lines, "; ".join(said) + ".")


def _line(record: dict[str, Any], paper: str) -> Line:
    digits = 2 if abs(record["one"]) < 10 and abs(record["other"]) < 10 else 1

    def text(value: float, sign: str = "") -> str:
        return f"{value:{sign}.{digits}f}"

    known = np.isfinite(record["low"])
    sure = known and not record["low"] <= 0 <= record["high"]
    ends = f"{text(record['low'], '+')} to {text(record['high'], '+')}" if known else DASH
    texts = [text(record["one"]), text(record["other"]), text(record["difference"], "+"), ends]
    entries = [TableCell(value, bold=sure and i == 2) for i, value in enumerate(texts)]
    head = tuple(named(key, record[key], paper).removeprefix("T=") for key in STUBS)
    return Line(head, (*entries, TableCell(str(record["n"])), TableCell(str(record["seeds"]))))
