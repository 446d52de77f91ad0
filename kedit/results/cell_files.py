"""The files of a cell (one run's directory) and of a sweep, by name, and what a cell's state is.

<cell>/config.yaml   resolved config            rows.jsonl    one probe scored once a line
       meta.json     provenance, timings        steps.jsonl   one step a line: seconds, loss, weight change
       status        running | finished         traces.jsonl  one probe at one optimiser step a line
       state/        model and editor after the last commit
       error         traceback of the last failure; its last line says in one sentence what is wrong
"""

import json
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kedit.common.text_files import read_text

ROWS, STEPS, TRACES, CONFIG, META, STATUS, STATE = (
    "rows.jsonl",
    "steps.jsonl",
    "traces.jsonl",
    "config.yaml",
    "meta.json",
    "status",
    "state",
)
SCRATCH, LOCK = "scratch", ".lock"
ERROR = "error"
CELLS = "cells.json"  # of a sweep: the cells that were ever requested


def is_finished(cell: Path) -> bool:
    return read_text(cell / STATUS) == "finished"


def is_running(cell: Path) -> bool:
    """Whether a process works in this cell. A process that was killed holds no lock."""
    if not (cell / LOCK).exists():
        return False
    try:
        with FileLock(cell / LOCK, blocking=False):
            return False
    except Timeout:
        return True


def requested_cells(sweep: Path) -> list[dict[str, Any]]:
    """All cells that were ever requested of a sweep, sorted by directory."""
    path = sweep / CELLS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
