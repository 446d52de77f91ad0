"""Paths: of conf/ and sweeps/, and of the folder of all outputs."""

import os
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent  # the wheel carries conf/ and sweeps/ inside kedit/


def runs() -> Path:
    """The folder of all outputs: $KEDIT_RUNS, or ./runs."""
    return Path(os.environ.get("KEDIT_RUNS", "runs"))


def sweep_folder(place: str | Path) -> Path:
    """The folder of a sweep (a name below the outputs), or the directory itself."""
    return runs() / place if (runs() / place).is_dir() else Path(place)
