"""Whether a cell's files hold what its run wrote.

Their sizes and hashes are recorded at each commit (state/commit.json, also of the files in state/) and when the run has
finished (manifest.json); both have the form {"files": {name below the cell: {"size": bytes, "sha256": hex}}}.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from kedit.common.errors import InputError
from kedit.common.text_files import write_text
from kedit.results.cell_files import BENCHMARKS, COMMIT, MANIFEST, ROWS, STATE, STEPS, TRACES

Fingerprint = dict[str, Any]  # size in bytes, sha256
GROWING = (ROWS, STEPS, TRACES, BENCHMARKS)  # may hold more than was committed


class DamagedFile(InputError):
    """A file of a cell is not what the run wrote, or cannot be read."""

    def __init__(self, cell: Path, name: str, what: str):
        super().__init__(f"{cell / name} is damaged ({what}); remove {cell} and run it again")
        self.file, self.what = cell / name, what


def fingerprint(path: Path, size: int | None = None) -> Fingerprint:
    """Size and hash of a whole file, or of its first `size` bytes."""
    left = path.stat().st_size if size is None else size
    known, hashed = left, hashlib.sha256()
    with open(path, "rb") as file:
        while left and (block := file.read(min(left, 2**20))):
            hashed.update(block)
            left -= len(block)
    return {"size": known - left, "sha256": hashed.hexdigest()}


def write_record(cell: Path, name: str, record: Mapping[str, Any]) -> None:
    """commit.json or manifest.json, with a hash of its own content."""
    write_text(cell / name, json.dumps({**record, "own_sha256": _own_hash(record)}, indent=1))


def read_record(cell: Path, name: str) -> dict[str, Any]:
    """What `write_record` wrote; empty if there is none."""
    try:
        record = read_json(cell, name)
    except DamagedFile as damaged:
        if isinstance(damaged.__cause__, FileNotFoundError | NotADirectoryError):
            return {}
        raise
    if (own := record.pop("own_sha256", None)) and own != _own_hash(record):
        raise DamagedFile(cell, name, "its content has changed")
    return record


def _own_hash(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode("utf-8")).hexdigest()


def check_files(cell: Path, *, only: Collection[str] | None = None, without: Collection[str] = ()) -> None:
    """Raises DamagedFile if a file (the state apart) is not as the run left it, or as it was last committed."""
    finished = read_record(cell, MANIFEST)
    files = _files(cell, finished or read_record(cell, COMMIT))
    left_out = {*without, *(name for name in files if name.startswith(f"{STATE}/") or (only and name not in only))}
    compare(cell, {name: known for name, known in files.items() if name not in left_out}, growing=not finished)


def compare(cell: Path, files: Mapping[str, Fingerprint], growing: bool) -> None:
    """Raises DamagedFile if one of these files differs from its fingerprint; of `growing` ones the rest is new."""
    for name, known in files.items():
        path = cell / name
        if not path.is_file():
            raise DamagedFile(cell, name, "it is missing")
        now = fingerprint(path, known["size"] if growing and name in GROWING else None)
        if now["size"] != known["size"]:
            raise DamagedFile(cell, name, f"it has {now['size']} bytes, {known['size']} were written")
        if now != known:
            raise DamagedFile(cell, name, "its content has changed")


def _files(cell: Path, record: Mapping[str, Any]) -> dict[str, Fingerprint]:
    files = record.get("files", {})
    if not isinstance(files, dict) or not all(_is_fingerprint(known) for known in files.values()):
        raise DamagedFile(cell, COMMIT if "step" in record else MANIFEST, "it is no list of files")
    return files


def _is_fingerprint(known: Any) -> bool:
    return isinstance(known, dict) and isinstance(known.get("size"), int) and "sha256" in known


def read_json(cell: Path, name: str) -> dict[str, Any]:
    """A file that holds one JSON object."""
    try:
        content = json.loads((cell / name).read_bytes().decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedFile(cell, name, "it is missing") from error
    except ValueError as error:
        raise DamagedFile(cell, name, f"it is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise DamagedFile(cell, name, "it is no JSON object")
    return content


def read_records(cell: Path, name: str) -> list[dict[str, Any]]:
    """The records of a .jsonl file, also while it grows: an unfinished last line is left out; none without a file."""
    content = complete_lines(cell / name) if (cell / name).is_file() else b""
    return [_record(cell, name, i, line) for i, line in enumerate(content.split(b"\n")[:-1], 1)]


def _record(cell: Path, name: str, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise DamagedFile(cell, name, f"line {number}: {error}") from error
    if not isinstance(record, dict):
        raise DamagedFile(cell, name, f"line {number} is no record")
    return record


def complete_lines(path: Path) -> bytes:
    """What the file holds up to its last line break."""
    whole = path.read_bytes()
    return whole[: whole.rfind(b"\n") + 1]
