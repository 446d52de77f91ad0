"""General ability: what benchmarks found in the unedited model and at every test, in per cent."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kedit.common.errors import InputError
from kedit.results.cells import Cell
from kedit.results.measured import AVERAGE, COLUMNS, MORE
from kedit.results.samples import UNEDITED, SampleKey, Test, failed_edits, grouped_tests

ACCURACY = "accuracy"  # the papers' word for a benchmark's number
NORMAL = 1.96  # standard errors on either side make a 95 % interval
SHOWN = ["T", "edits_so_far", "benchmark", "metric", "value", "stderr", "n"]


def abilities(cell: Cell) -> pd.DataFrame:
    """One line for each benchmark that stands in tables and each test: columns SHOWN, and `routed`, if a memory or a
    gate decided on its questions; T = 0 for the unedited model."""
    rows = cell.measures
    if "main" not in rows:
        return pd.DataFrame(columns=SHOWN)
    rows = rows[rows["main"] == 1].rename(columns={"group": "benchmark"})
    T = rows["T"].where(rows["when"] == "test", 0) if "T" in rows else 0
    scaled = {"value": 100 * rows["value"], "stderr": 100 * rows.get("stderr", pd.Series(math.nan, rows.index))}
    wanted = [*SHOWN, *(["routed"] if "routed" in rows else [])]
    return rows.assign(T=T, **scaled)[wanted].astype({"T": int, "n": int}).reset_index(drop=True)


def described(cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """What each benchmark asks, by name, as the cells' metadata have it."""
    found: dict[str, dict[str, Any]] = {}
    for cell in cells:
        for measure in cell.meta.get("measures", {}).values():
            found |= {name: about for name, about in measure.items() if "num_fewshot" in about}
    return found


# --- a paper's table of benchmarks -----------------------------------------------------------------------------------


def benchmark_frame(
    cells: Sequence[Cell],
    paper: str,
    table: int,
    named: Mapping[str, str],
    same_as: Mapping[str, str],
    bare: Collection[tuple[str, str]],
) -> pd.DataFrame:
    """Like kedit.results.measured.frame_of, with the benchmark as `dataset` and the edited one in `note`.

    `named`: benchmark -> the paper's name of it. `bare`: (model, editor) of rows that the paper prints without setting
    and T: the unedited model, an aligned one without edits.
    """
    tests = grouped_tests(cells, same_as)
    lines = [line for key, by_seed in tests.items() for line in _lines(_place(key, bare), by_seed, named, 0)]
    for key, by_seed in reversed(tests.items()):
        place = _place(key._replace(editor=UNEDITED), bare)
        lines = [*_lines(place, by_seed, named, 1), *lines]
    frame = pd.DataFrame(lines, columns=[*COLUMNS, *MORE])
    frame = _once(frame).assign(paper=paper, table=pd.array([table] * len(_once(frame)), dtype="Int64"), printed_as="")
    return frame.astype({"T": "Int64", "value": float, "ci": float, "low": float, "high": float})


def _place(key: SampleKey, bare: Collection[tuple[str, str]]) -> SampleKey:
    """Where the paper prints it."""
    return key._replace(setting="", T=None) if (key.model, key.editor) in bare else key


def _lines(
    key: SampleKey, by_seed: Mapping[int, Test], named: Mapping[str, str], unedited: bool | int
) -> Iterator[dict[str, Any]]:
    """Each benchmark's mean over seeds, and their mean if none is missing."""
    known = {
        "note": f"edit_dataset={key.dataset}",
        "seeds": len(by_seed),
        "failed": 0 if unedited else sum(map(failed_edits, by_seed.values())),
        "directories": [test.cell.directory for test in by_seed.values()],
        "metric": ACCURACY,
    }
    found = pd.concat([_at(test, 0 if unedited else test.T) for test in by_seed.values()])
    done: list[dict[str, Any]] = []
    for benchmark, printed in named.items():
        mine = found[found["benchmark"] == benchmark]
        if len(mine):
            place = key._replace(dataset=printed)._asdict()
            # seeds are asked the same questions: their mean is no more certain than one of them
            done.append(place | known | _number(mine["value"].mean(), mine["stderr"].mean(), int(mine["n"].iloc[0])))
    yield from done
    if done and len(done) == len(named):
        error = math.sqrt(sum((line["ci"] / NORMAL) ** 2 for line in done)) / len(done)
        whole = _number(float(np.mean([line["value"] for line in done])), error, sum(line["n"] for line in done))
        yield key._replace(dataset=AVERAGE)._asdict() | known | whole


def _at(test: Test, T: int) -> pd.DataFrame:
    lines = abilities(test.cell)
    return lines[lines["T"] == T]


def _number(value: float, stderr: float, n: int) -> dict[str, Any]:
    ci = NORMAL * stderr
    return {"value": value, "ci": ci, "low": value - ci, "high": value + ci, "n": n, "replicates": None}


def _once(frame: pd.DataFrame) -> pd.DataFrame:
    """One number a place: the unedited model is the same whatever is edited, two edited ones are not."""
    place = ["model", "setting", "T", "dataset", "editor", "metric"]
    frame = frame[~((frame["editor"] == UNEDITED) & frame.duplicated(place))]
    twice = frame[frame.duplicated(place, keep=False)]
    if len(twice):
        one, other = twice.iloc[0], twice.iloc[1:].loc[lambda rest: rest["editor"] == twice.iloc[0]["editor"]].iloc[0]
        raise InputError(
            f"{one['directories'][0]} and {other['directories'][0]} both measure {one['dataset']} after T={one['T']} "
            "edits, of different datasets; give the table one of the directories"
        )
    return frame.reset_index(drop=True)
