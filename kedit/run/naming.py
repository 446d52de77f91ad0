"""How a cell is named: by its choices, never by the clock."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

GROUPS = ("model", "dataset", "editor", "setting")  # the choices that name a cell, with T and seed
# change no row, so are no part of what a cell is
BOOKKEEPING = ("runs", "threads", "save", "keep_state", "commit_every_s", "parallel", "tracker", "table")


def names_of(hydra: Any) -> dict[str, str]:
    """What a job chose, the sweep it belongs to, and its other overrides."""
    chosen = {group: str(hydra.runtime.choices[group]) for group in (*GROUPS, "sweeps")}
    return chosen | {"overrides": overrides(hydra.overrides.task)}


def cell_directory(runs: Path, names: Mapping[str, str], T: int | str, seed: int) -> Path:
    """runs/<sweep>/<model>/<dataset>/<editor>/<setting>-T<T>/seed<seed>[/<overrides>]."""
    choices = Path(names["sweeps"], names["model"], names["dataset"], names["editor"])
    text = names["overrides"]
    if len(text) > 80 or "/" in text:
        text = sha256(text.encode()).hexdigest()[:12]  # the full text is in meta.json
    return runs / choices / f"{names['setting']}-T{T}" / f"seed{seed}" / text


def overrides(task: Sequence[str]) -> str:
    """The command line's overrides that the rest of a directory's name does not tell, sorted."""

    def told(override: str) -> bool:
        key = override.lstrip("+~").partition("=")[0]
        return key in (*GROUPS, "sweeps", "T", "seed") or key.partition(".")[0] in BOOKKEEPING

    return ",".join(sorted(override for override in task if not told(override)))
