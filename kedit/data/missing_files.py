"""Files that the user names: there, or one sentence that says where they come from and where to put them."""

import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from kedit.common.download import downloaded
from kedit.common.errors import InputError
from kedit.common.hub import hub_file

ORIGINS = Path(__file__).with_name("origins.yaml")


def data_folder() -> Path:
    """The folder that KEDIT_DATA names, or ./data."""
    return Path(os.environ.get("KEDIT_DATA") or "data").expanduser()


def at_hand(path: Path) -> Path:
    """The file, or if it is not there the one of this name that origins.yaml knows: of the hub, or of the benchmark's
    own address; from the cache, or downloaded. The path as it is if it cannot be had."""
    found = _fetched(path)
    return path if found is None or isinstance(found, str) else found


def _fetched(path: Path) -> Path | str | None:
    """The file from elsewhere, or why it cannot be had; None if it is there, or nobody has it."""
    origin = _origins().get(path.name, {})
    if path.exists() or not origin.keys() & {"hub", "url"}:
        return None
    try:
        if "hub" in origin:
            return hub_file(origin["hub"]["dataset"], origin["hub"]["file"], repo_type="dataset")
        return downloaded(origin["url"])
    except InputError as error:
        return str(error)


def origin_of(path: Path) -> dict[str, str] | None:
    """{dataset, file} of the hub for a file that is not there, if origins.yaml knows it."""
    return None if path.is_file() else _origins().get(path.name, {}).get("hub")


def check_file(path: Path, option: str, instead: str = "", what: str = "it") -> None:
    """Raises InputError if `path`, which the user gives with `option`, is no file, and the hub's file of this name
    cannot be had either. `instead`: another way out, e.g. "eval.consistency=null"."""
    try:
        there = path.exists()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a file with {option}=FILE") from error
    if at_hand(path).is_file():
        return
    if there:
        kind = "a folder" if path.is_dir() else "no ordinary file"
        raise InputError(f"{path} is {kind}; give a file with {option}=FILE")
    *ways, last = _ways_out(path, option, instead, what)
    raise InputError(f"{path}: no such file; {', '.join(ways)}{', or ' if ways else ''}{last}")


def missing_files(files: Sequence[tuple[str, Path]], instead: str = "", what: str = "it") -> Iterator[str]:
    """`check_file` for several (option, file): a sentence about each that is missing."""
    for option, path in dict.fromkeys(files):
        try:
            check_file(path, option, instead, what)
        except InputError as error:
            yield str(error)


def check_files(files: Sequence[tuple[str, Path]], instead: str = "") -> None:
    """`check_file` for several (option, file); the sentence about the first that is missing names the others."""
    missing: dict[Path, InputError] = {}
    for option, path in files:
        try:
            check_file(path, option, instead)
        except InputError as error:
            missing[path] = error
    if missing:
        (_, said), *others = missing.items()
        more = f" (missing too: {', '.join(str(path) for path, _ in others)})" if others else ""
        raise InputError(f"{said}{more}")


def _ways_out(path: Path, option: str, instead: str, what: str) -> Iterator[str]:
    """Where the file comes from, as far as it is known, where kedit looks for it, and what else can be given."""
    origin, failed = _origins().get(path.name), _fetched(path)
    there = f"put it into {data_folder()}, the folder that KEDIT_DATA names" if path.parent == data_folder() else ""
    if origin:
        because = f" (kedit could not: {failed})" if isinstance(failed, str) and "url" in origin else ""
        address = origin.get("url") or origin["from"]
        yield f"get {origin['what']} from {address}{because}{' and ' if there else ''}{there}"
    elif there:
        yield there
    yield f"give {what} with {option}=FILE"
    if instead:
        yield f"set {instead}"


@cache
def _origins() -> dict[str, Any]:
    """File name -> {what, from, hub: {dataset, file}}; hub only if the hub has it, and `url` in the place of `from` if
    it can be downloaded from there."""
    return yaml.safe_load(ORIGINS.read_text(encoding="utf-8"))
