"""Cells as a run leaves them, made of given scores: tables are tested on numbers that are known by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kedit.results.cells import Cell

META: dict[str, Any] = {
    "model": "world",
    "dataset": "world",
    "editor": "ft_m",
    "setting": "sequential",
    "T": 4,
    "seed": 101,
    "order_seed": None,
    "overrides": "",
    "versions": {"torch": "2.9", "transformers": "5.5"},
    "data": {"sha256": "d", "dropped": {}, "notes": []},
    "model_is": {"identity": "m", "dtype": "float32"},
}
Scores = Mapping[str, Sequence[float | None]]  # kind -> a share for each case; None: no such question


def make_cell(runs: Path, scores: Scores, *, failed: int = 0, eval_config: Any = None, **meta: Any) -> Cell:
    """A finished cell: one question of each kind a case; the unedited model has half of each score, 1 of locality."""
    n = len(next(iter(scores.values())))
    full = META | {"effective_T": meta.get("T", META["T"]), "cases": n} | meta
    place = f"{full['model']}/{full['dataset']}/{full['editor']}/{full['setting']}-T{full['T']}/seed{full['seed']}"
    directory = runs / place / full["overrides"]
    directory.mkdir(parents=True)
    rows = [
        row
        for kind, values in scores.items()
        for i, value in enumerate(values)
        if value is not None
        for row in _rows(full, _case(full, i), kind, value, n)
    ]
    steps = [
        {"step": i + 1, "edits_so_far": i + 1, "failed": int(i < failed), "edit_s": 1.0, "cases": [_case(full, i)]}
        for i in range(n)
    ]
    _lines(directory / "rows.jsonl", rows)
    _lines(directory / "steps.jsonl", steps)
    (directory / "meta.json").write_text(json.dumps(full))
    (directory / "status").write_text("finished")
    (directory / "config.yaml").write_text(yaml.safe_dump({"eval": eval_config or {"aliases": "first"}}))
    return Cell(directory)


def _case(full: Mapping[str, Any], i: int) -> str:
    return f"{full['seed']}-{i:04d}"


def _rows(full: Mapping[str, Any], case: str, kind: str, value: float, n: int) -> list[dict[str, Any]]:
    shared = {"case": case, "kind": kind, "group": "", "probe": 0}
    before = value if kind == "fluency" else 1.0 if kind == "locality" else value / 2
    if kind == "fluency":
        scored = [{"scoring": "generate", "entropy": share} for share in (before, value)]
    else:
        scored = [{"scoring": "forced", "token": share, "exact": int(share == 1)} for share in (before, value)]
    test = {"when": "test", "step": n, "edits_so_far": n, "T": full["effective_T"]}
    return [
        shared | {"when": "before", "step": 0, "edits_so_far": 0} | scored[0],
        shared | test | scored[1],
    ]


def _lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
