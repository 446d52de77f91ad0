"""Content-addressed cache: an artefact that is expensive and depends only on its key is built once and shared by every
later run.

It is a directory `$KEDIT_CACHE/<kind>/<hash of its key>/` (default `~/.cache/kedit`), written under a file lock and
moved into place whole, with a manifest of its files' hashes: jobs that start together build it once, and a damaged one
is detected and built again.
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

from filelock import FileLock, Timeout

from kedit.common.errors import InputError

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
PRUNED = ".pruned-"
IN_USE = "in use now, kept:"


class CacheNotWritable(InputError):
    """Something must be built, and the cache can only be read."""


def cache_folder() -> Path:
    """The cache's root. It is created if it does not exist."""
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
    """The directory that `key` (everything it depends on) determines; if there is none, `build` fills an empty one."""
    return cached_many(kind, [key], lambda new: build(new[0]))[0]


def cached_many(
    kind: str, keys: Sequence[Mapping[str, Any]], build: Callable[[Mapping[int, Path]], None]
) -> list[Path]:
    """One directory for each of these distinct keys; `build` fills the empty ones of all that are missing, by their
    places among the keys, in one go. A cache that nobody may write to serves what it has."""
    homes = [cache_folder() / kind / digest(key) for key in keys]
    absent = {i: home for i, home in enumerate(homes) if not _usable(home)}
    with ExitStack() as locks:
        missing = {}
        for i, home in sorted(absent.items(), key=lambda item: item[1]):  # in one order everywhere: no deadlock
            lock = writing_lock(home)
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
    return homes


def writing_lock(home: Path) -> FileLock:
    """The lock of a folder of the cache that is about to be written; what deletes the folder holds it, too."""
    lock = _lock_of(home)
    try:
        home.parent.mkdir(exist_ok=True)
        lock.touch()
        return FileLock(lock)
    except OSError as error:
        raise CacheNotWritable(
            f"the cache folder {cache_folder()} does not have {home.parent.name}/{home.name}, and nothing can be "
            f"written there ({error.strerror}); set KEDIT_CACHE to a writable folder"
        ) from error


def _usable(home: Path) -> bool:
    """Is it built, and undamaged? Without a lock: it is first marked as used, so that nobody deletes it now."""
    return mark_used(home) and intact(home)


def _there(kind: str, home: Path) -> bool:
    """The same under its lock; a damaged one is removed."""
    if not home.exists() or _usable(home):
        return home.exists()
    log.warning("the cached %s in %s is damaged and is built again", kind, home)
    shutil.rmtree(home)
    return False


def _emptied(home: Path) -> Path:
    """The empty directory in which it is built. While its lock is held, only a killed run can have left something
    there."""
    new = home.with_name(f".building-{home.name}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    return new


def mark_used(folder: Path) -> bool:
    """Note that a run is about to use a folder of the cache (see `prune`). False if there is none."""
    try:
        os.utime(folder)
    except FileNotFoundError:
        return False
    except OSError:  # it may only be read
        return folder.exists()
    return True


@dataclass(frozen=True)
class CacheEntry:
    """A folder of the cache."""

    kind: str
    path: Path
    lock: Path
    size: int  # bytes
    used: float  # when a run last used it, in seconds since the epoch


def cache_entries() -> Iterator[CacheEntry]:
    """All that the cache holds, also while runs build and others delete."""
    for path in sorted(cache_folder().glob("*/*")):
        try:
            if path.is_dir():
                yield CacheEntry(path.parent.name, path, _lock_of(path), _bytes_in(path), path.stat().st_mtime)
        except FileNotFoundError:  # it has just been moved or deleted
            continue


def _lock_of(path: Path) -> Path:
    """Beside an artefact, and the same for the folder where it is built."""
    name = path.name.removeprefix(".building-").removeprefix(".partial-").removeprefix(PRUNED)
    return path.with_name(f"{name}.lock")


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def contents() -> str:
    """The cache's folder and the size of each kind of artefact, in one line."""
    sizes: dict[str, int] = {}
    for entry in cache_entries():
        sizes[entry.kind] = sizes.get(entry.kind, 0) + entry.size
    parts = ", ".join(f"{kind} {_size(size)}" for kind, size in sorted(sizes.items()))
    return f"cache {cache_folder()}: {_size(sum(sizes.values()))}" + (f" ({parts})" if parts else "")


def _size(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def prune(days: float, *, really: bool) -> Iterator[str]:
    """Delete what no run has used for so many days; only says so unless `really`. All of it can be made again."""
    before = time.time() - days * 86400
    old = [entry for entry in cache_entries() if entry.used < before]
    freed = 0
    for entry in old:
        done = _delete(entry, before) if really else "would delete"
        freed += entry.size * (done != IN_USE)
        yield f"{done} {entry.path} ({_size(entry.size)})"
    total = f"{_size(freed)} not used for {days:g} days"
    yield total if really or not old else f"{total}; --yes deletes them (each is made again where a run needs it)"


def _delete(entry: CacheEntry, before: float) -> str:
    """Moved away first: a run that has marked it as used by then is seen, one that comes later finds nothing."""
    gone = entry.path.with_name(f"{PRUNED}{entry.path.name.removeprefix(PRUNED)}")
    try:
        with FileLock(entry.lock, blocking=False):
            entry.path.rename(gone)
            if gone.stat().st_mtime >= before:
                gone.rename(entry.path)
                return IN_USE
            shutil.rmtree(gone)
    except Timeout:
        return IN_USE
    except FileNotFoundError:
        pass  # by somebody else
    except OSError as error:
        raise CacheNotWritable(f"{entry.path} cannot be deleted ({error.strerror}); ask its owner") from error
    return "deleted"


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
    """sha256; of a large file computed once for each (path, size, time of last change), if the cache can be written."""
    stat = path.stat()
    if stat.st_size < 2**26:
        return sha256(path)
    key = {"path": str(path.resolve()), "size": stat.st_size, "mtime": stat.st_mtime_ns}

    def build(folder: Path) -> None:
        (folder / "sha256").write_text(sha256(path), encoding="utf-8")

    try:
        return (cached("sha256", key, build) / "sha256").read_text(encoding="utf-8")
    except CacheNotWritable:
        return sha256(path)
