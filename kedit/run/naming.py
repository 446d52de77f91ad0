"""How a cell is named: by its choices, never by the clock."""

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from kedit.common.errors import InputError

GROUPS = ("model", "dataset", "editor", "setting")  # the choices that name a cell, with T and seed
# change no row, so are no part of what a cell is
BOOKKEEPING = (
    *("runs", "threads", "save", "keep_state", "keep_model", "commit_every_s", "parallel", "gpus"),
    *("tracker", "table"),
)
REFERRED = ("resources",)  # only referred to: what is used of them stands where it is used
LONGEST = 80  # characters of overrides in a directory's name
LONG_VALUE = 24  # characters of one value, if they do not fit


def names_of(hydra: Any) -> dict[str, str]:
    """What a job chose, the sweep it belongs to, and its other overrides."""
    chosen = {group: str(hydra.runtime.choices[group]) for group in (*GROUPS, "sweeps")}
    return chosen | {"overrides": overrides(hydra.overrides.task)}


def cell_directory(runs: Path, names: Mapping[str, str], T: int | str, seed: int | str) -> Path:
    """runs/<sweep>/<model>/<dataset>/<editor>/<setting>-T<T>/seed<seed>[/<overrides>]. A directory that an older kedit
    made, with a hash for long overrides, keeps its name: its cell is continued there.

    Raises InputError if one of the names would lead out of `runs`.
    """
    choices = [_plain(group, str(names[group])) for group in ("sweeps", "model", "dataset", "editor", "setting")]
    numbers = [f"{choices.pop()}-T{_plain('T', str(T))}", f"seed{_plain('seed', str(seed))}"]
    place, text = runs.joinpath(*choices, *numbers), names["overrides"]
    if _fits(text) and "/" not in text:
        return place / text
    older = place / sha256(text.encode()).hexdigest()[:12]  # the name that such a cell had before they were readable
    return older if older.is_dir() else place / _readable(text)


def _fits(text: str) -> bool:
    return len(text) <= LONGEST and len(text.encode()) <= 2 * LONGEST and text.isprintable()


def _readable(text: str) -> str:
    """Overrides as the name of one folder: editor/loss=x is editor-loss=x, path=/a/b.json is path=%a%b.json. If that is
    too long, values are abbreviated, paths to their last part, and digits of a hash tell apart what then looks alike.
    The full text is in meta.json ("overrides")."""
    pairs = [override.partition("=") for override in re.split(r",(?=[^,=]+=)", text)]
    whole = ",".join(f"{key.replace('/', '-')}{equal}{value.replace('/', '%')}" for key, equal, value in pairs)
    if _fits(whole) and "%" not in text and not any("-" in key for key, *_ in pairs):
        return whole
    digits = f"~{sha256(text.encode()).hexdigest()[:6]}"
    room = LONGEST - len(digits)
    short = ",".join(f"{key.replace('/', '-')}{equal}{_abbreviated(value)}" for key, equal, value in pairs)
    if len(short) > room:  # without what stands before an option's own name
        short = ",".join(f"{re.split('[./]', key)[-1]}{equal}{_abbreviated(value)}" for key, equal, value in pairs)
    short = short if len(short) <= room else f"{short[: room - 2]}.."
    return re.sub(r"[^\x20-\x7e]", "_", short) + digits


def _abbreviated(value: str) -> str:
    """A value in a folder's name: of a path its last part, of a long text its two ends."""
    last = re.sub(r"[^\s,:'\"()\[\]{}]*/(?=[^/\s,])", "", value).replace("/", "%")
    half = LONG_VALUE // 2 - 1
    return last if len(last) <= LONG_VALUE else f"{last[:half]}..{last[-half:]}"


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
