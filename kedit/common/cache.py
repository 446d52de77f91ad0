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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from kedit.common.errors import InputError

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"


def cache_folder() -> Path:
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


def cached(kind: str, key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """The directory that `key` (everything it depends on) determines; `build` fills an empty one where there is
    none."""
    return cached_many(kind, [key], lambda new: build(new[0]))[0]


def cached_many(
    kind: str, keys: Sequence[Mapping[str, Any]], build: Callable[[Mapping[int, Path]], None]
) -> list[Path]:
    """One directory for each of these distinct keys; `build` fills the empty ones of all that are missing, by their
    places among the keys, in one go."""
    homes = [cache_folder() / kind / digest(key) for key in keys]
    with ExitStack() as locks:
        missing = {}
        for i, home in sorted(enumerate(homes), key=lambda item: item[1]):  # in one order everywhere: no deadlock
            home.parent.mkdir(exist_ok=True)
            lock = FileLock(f"{home}.lock")
            with lock:
                if not _there(kind, home):
                    missing[i] = _emptied(home)
                    locks.enter_context(lock)
        try:
            if missing:
                build(missing)
            for i, new in missing.items():
                _write_manifest(new, keys[i])
                new.rename(homes[i])
        finally:
            for new in missing.values():
                shutil.rmtree(new, ignore_errors=True)
    for home in homes:
        mark_used(home)
    return homes


def _there(kind: str, home: Path) -> bool:
    """Is it built, and undamaged? A damaged one is removed."""
    if not home.exists() or intact(home):
        return home.exists()
    log.warning("the cached %s in %s is damaged and is built again", kind, home)
    shutil.rmtree(home)
    return False


def _emptied(home: Path) -> Path:
    """Where it is built. Under its lock, what is there was left by a killed run."""
    new = home.with_name(f".building-{home.name}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    return new


def mark_used(folder: Path) -> None:
    """Note that a run has just used what is in a folder of the cache: see `cache_entries`."""
    os.utime(folder)


@dataclass(frozen=True)
class CacheEntry:
    """A folder of the cache."""

    kind: str
    path: Path
    lock: Path
    size: int  # bytes
    used: float  # when a run last used it, in seconds since the epoch


def cache_entries() -> Iterator[CacheEntry]:
    """All that the cache holds."""
    for path in sorted(path for path in cache_folder().glob("*/*") if path.is_dir()):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        inside = path / ".lock"  # where what is there grows from run to run
        lock = inside if inside.exists() else path.with_name(f"{path.name.removeprefix('.building-')}.lock")
        yield CacheEntry(path.parent.name, path, lock, size, path.stat().st_mtime)


def contents() -> str:
    """What the cache holds, in one line."""
    sizes: dict[str, int] = {}
    for entry in cache_entries():
        sizes[entry.kind] = sizes.get(entry.kind, 0) + entry.size
    parts = ", ".join(f"{kind} {_size(size)}" for kind, size in sorted(sizes.items()))
    return f"cache {cache_folder()}: {_size(sum(sizes.values()))}" + (f" ({parts})" if parts else "")


def _size(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def prune(days: float, *, really: bool) -> Iterator[str]:
    """Delete what no run has used for so many days; only says so unless `really`. All of it can be made again."""
    old = [entry for entry in cache_entries() if time.time() - entry.used > days * 86400]
    for entry in old:
        if really:
            with FileLock(entry.lock):
                shutil.rmtree(entry.path)
        yield f"{'deleted' if really else 'would delete'} {entry.path} ({_size(entry.size)})"
    total = f"{_size(sum(entry.size for entry in old))} not used for {days:g} days"
    yield total if really or not old else f"{total}; --yes deletes them (each is made again where a run needs it)"


def _write_manifest(folder: Path, key: Mapping[str, Any]) -> None:
    files = {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    (folder / MANIFEST).write_text(
        json.dumps({"key": dict(key), "files": files}, indent=1, ensure_ascii=False), encoding="utf-8"
    )


def intact(folder: Path) -> bool:
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
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
        (folder / "sha256").write_text(sha256(path), encoding="utf-8")

    return (cached("sha256", key, build) / "sha256").read_text(encoding="utf-8")
