"""Rows of an older schema are read as those of the newest; rows of a newer kedit are refused in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from kedit.common.errors import InputError
from kedit.results.cells import Cell

ROUTE = {"recalled": [{"edit": 0}], "injected": ["text"], "routed": 1, "adapter": None}


def cell(folder: Path, **meta: Any) -> Cell:
    row = {"step": 1, "edits_so_far": 1, "when": "test", "T": 1, "case": "a", "kind": "reliability", "route": ROUTE}
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return Cell(folder)


@pytest.mark.parametrize("meta", [{"schema": 1}, {}], ids=["schema 1", "before there was one"])
def test_the_first_schema(tmp_path: Path, meta: dict[str, Any]) -> None:
    [row] = cell(tmp_path, **meta).rows.to_dict("records")
    assert row["route"] == {"retrieved": [{"edit": 0}], "in_context": ["text"], "in_scope": 1, "adapter": None}
    assert row["edits_so_far"] == row["cases_so_far"] == 1


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rows have schema 99, this kedit reads up to 2"):
        _ = cell(tmp_path, schema=99).rows
