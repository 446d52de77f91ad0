"""The files of a cell (one run's directory) and of a sweep, by name, and what a cell's state is.

<cell>/config.yaml   resolved config            rows.jsonl    one probe scored once a line
       meta.json     provenance, timings        steps.jsonl   one step a line: seconds, loss, weight change
       status        running | finished         traces.jsonl  one probe at one optimiser step a line
       state/        model and editor after the last commit; commit.json says what was committed
       manifest.json size and hash of each file, when the run has finished
       benchmarks.jsonl  one document of a benchmark, asked once, a line
       error         traceback of the last failure; its last line says in one sentence what is wrong
"""

import fcntl
import json
import logging
import os
from pathlib import Path
from typing import Any

from kedit.common.text_files import read_text

ROWS, STEPS, TRACES, BENCHMARKS, CONFIG, META, STATUS, STATE = (
    "rows.jsonl",
    "steps.jsonl",
    "traces.jsonl",
    "benchmarks.jsonl",
    "config.yaml",
    "meta.json",
    "status",
    "state",
)
COMMIT, MANIFEST = f"{STATE}/commit.json", "manifest.json"
SCRATCH, LOCK = "scratch", ".lock"
ERROR = "error"
CELLS = "cells.json"  # in a sweep's folder: the cells that were ever requested
NO_CELLS = (STATE, "model", "wandb")  # folders of a cell that hold none
log = logging.getLogger(__name__)


def is_finished(cell: Path) -> bool:
    return read_text(cell / STATUS) == "finished"


def is_running(cell: Path) -> bool:
    """Whether a process works in this cell. A process that was killed holds no lock."""
    try:
        lock = os.open(cell / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(lock)


def requested_cells(sweep: Path) -> list[dict[str, Any]]:
    """All cells that were ever requested of a sweep, sorted by directory; none if that list is damaged, which is said:
    what has run is found without it."""
    try:
        cells = json.loads(read_text(sweep / CELLS) or "[]")
        return sorted(cells, key=lambda cell: str(cell["directory"]))
    except (ValueError, TypeError, KeyError):
        log.warning("%s is damaged; cells that it lists and that have not started are not shown", sweep / CELLS)
        return []


def cell_directories(root: Path, *names: str) -> list[Path]:
    """Directories below `root` that hold one of these files of a cell, sorted; also while runs write there."""
    found = []
    for folder, inside, files in os.walk(root):
        if not {*names}.isdisjoint(files):
            found.append(Path(folder))
            inside[:] = [name for name in inside if name not in NO_CELLS]
    return sorted(found)
