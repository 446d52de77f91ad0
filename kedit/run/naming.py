"""How a cell is named: by its choices, never by the clock."""

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from kedit.common.errors import InputError

GROUPS = ("model", "dataset", "editor", "setting")  # the choices that name a cell, with T and seed
# change no row, so are no part of what a cell is
BOOKKEEPING = ("runs", "threads", "save", "keep_state", "commit_every_s", "parallel", "tracker", "table")
REFERRED = ("resources",)  # only referred to: what is used of them stands where it is used
LONGEST = 80  # characters of overrides in a directory's name


def names_of(hydra: Any) -> dict[str, str]:
    """What a job chose, the sweep it belongs to, and its other overrides."""
    chosen = {group: str(hydra.runtime.choices[group]) for group in (*GROUPS, "sweeps")}
    return chosen | {"overrides": overrides(hydra.overrides.task)}


def cell_directory(runs: Path, names: Mapping[str, str], T: int | str, seed: int | str) -> Path:
    """runs/<sweep>/<model>/<dataset>/<editor>/<setting>-T<T>/seed<seed>[/<overrides>].

    Raises InputError if one of the names would lead out of `runs`.
    """
    choices = [_plain(group, str(names[group])) for group in ("sweeps", "model", "dataset", "editor", "setting")]
    numbers = [f"{choices.pop()}-T{_plain('T', str(T))}", f"seed{_plain('seed', str(seed))}"]
    text = names["overrides"]
    if len(text) > LONGEST or len(text.encode()) > 2 * LONGEST or "/" in text or not text.isprintable():
        text = sha256(text.encode()).hexdigest()[:12]  # the full text is in meta.json
    return runs.joinpath(*choices, *numbers, text)


def _plain(option: str, name: str) -> str:
    """A choice as a folder's name, of several folders if the choice lies in folders of its group."""
    parts = name.split("/")
    if not all(re.fullmatch(r"[\w.+=@ -]+", part) and part.strip(". ") for part in parts) or name.startswith(" "):
        raise InputError(
            f"{option}={name!r}: names a folder of the run, so give letters, digits, - and _, and no path out of it"
        )
    return name


def overrides(task: Sequence[str]) -> str:
    """The command line's overrides that the rest of a directory's name does not tell, sorted."""

    def told(override: str) -> bool:
        key = override.lstrip("+~").partition("=")[0]
        return key in (*GROUPS, "sweeps", "T", "seed") or key.partition(".")[0] in BOOKKEEPING

    return ",".join(sorted(override for override in task if not told(override)))
