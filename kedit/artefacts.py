"""Content-addressed cache: what is expensive and depends only on its key is built once and shared by every later run.

An artefact is a directory `$KEDIT_CACHE/<kind>/<hash of its key>/` (default `~/.cache/kedit`), written under a file
lock and moved into place whole, with a manifest of its files' hashes: jobs that start together build it once, and a
damaged one is detected and built again.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from kedit.errors import InputError

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"


def cache() -> Path:
    """The cache's root, made if need be."""
    root = Path(os.environ.get("KEDIT_CACHE") or Path.home() / ".cache" / "kedit").expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the cache folder {root} cannot be made ({error.strerror}); set KEDIT_CACHE to a writable folder"
        ) from error
    return root


def digest(key: Any) -> str:
    """Hash of a JSON-able key; equal for equal content."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def artefact(kind: str, key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """The directory that `key` (everything it depends on) determines; `build` fills an empty one where there is
    none."""
    home = cache() / kind / digest(key)
    home.parent.mkdir(exist_ok=True)
    with FileLock(f"{home}.lock"):
        if home.exists() and not intact(home):
            log.warning("the cached %s in %s is damaged and is built again", kind, home)
            shutil.rmtree(home)
        if not home.exists():
            new = home.with_name(f".building-{home.name}")  # under the lock: what is there was left by a killed run
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            try:
                build(new)
                _write_manifest(new, key)
                new.rename(home)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    return home


def _write_manifest(folder: Path, key: Mapping[str, Any]) -> None:
    files = {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    (folder / MANIFEST).write_text(json.dumps({"key": dict(key), "files": files}, indent=1, ensure_ascii=False))


def intact(folder: Path) -> bool:
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return all(sha256(folder / name) == value for name, value in files.items())
    except (OSError, ValueError, KeyError):
        return False


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """sha256; of a large file computed once for each (path, size, time of last change)."""
    stat = path.stat()
    if stat.st_size < 2**26:
        return sha256(path)
    key = {"path": str(path.resolve()), "size": stat.st_size, "mtime": stat.st_mtime_ns}

    def build(folder: Path) -> None:
        (folder / "sha256").write_text(sha256(path))

    return (artefact("sha256", key, build) / "sha256").read_text()
