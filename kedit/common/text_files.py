"""Text files that are written whole or not at all, and read while another process writes them."""

import os
from pathlib import Path


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
