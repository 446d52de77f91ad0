"""Text files: written whole or not at all, read while another process writes them, or given by the user."""

import os
from collections.abc import Iterator
from pathlib import Path

from kedit.common.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Replace the file in one step: a reader, or a run that is killed, sees the old text or the new one."""
    new = path.with_name(f".{path.name}.new")
    with open(new, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def read_text(path: Path) -> str | None:
    """The file's text, None if there is no such file. Bytes that are not UTF-8 become "\\ufffd"."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file that the user gives, one after another, without a byte order mark. Raises InputError if
    it is not UTF-8."""
    try:
        with open(path, encoding="utf-8-sig") as lines:
            yield from lines
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8, e.g. with iconv") from error
