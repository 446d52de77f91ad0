"""A file of a cell that only grows: lines of JSON, with the size and the hash of all of them at hand."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kedit.results.integrity import Fingerprint


class AppendedFile:
    """Opened, it holds its first `size` bytes: what was written after a commit is cut off."""

    def __init__(self, path: Path, size: int):
        self._file = open(path, "ab")  # noqa: SIM115 (see close)
        self._file.truncate(size)
        self._size, self._hash = size, hashlib.sha256()
        with open(path, "rb") as written:
            for block in iter(lambda: written.read(2**20), b""):
                self._hash.update(block)

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode("utf-8")
        self._file.write(lines)
        self._file.flush()
        self._hash.update(lines)
        self._size += len(lines)

    def synced(self) -> Fingerprint:
        """Everything written is on disk; returns what identifies it."""
        os.fsync(self._file.fileno())
        return {"size": self._size, "sha256": self._hash.hexdigest()}

    def close(self) -> None:
        self._file.close()
