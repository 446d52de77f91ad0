"""Files from a web address: downloaded once into the cache, continued after an interruption, and checked by sha256.

The first download's sha256 is recorded beside the file and outlives it: a file that later differs (damaged on disk, or
changed at its address) is never used in silence.
"""

import json
import os
from collections.abc import Iterator
from functools import cache
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from shutil import disk_usage
from time import sleep
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from kedit.common.cache import (
    CacheNotWritable,
    cache_folder,
    digest,
    mark_used,
    remembered_sha256,
    sha256,
    writing_lock,
)
from kedit.common.errors import InputError, first_line
from kedit.common.progress import progress
from kedit.common.text_files import write_text

KIND = "downloads"  # their name in the cache
OFFLINE = "HF_HUB_OFFLINE"  # the hub's own switch; it stops these downloads too
TRIES, TIMEOUT_S, CHUNK = 4, 30, 2**18
PAUSE_S = 0.5  # before the second try; then twice as long each time
RANGE_WRONG = 416
JSON_STARTS = (b"{", b"[")


class Changed(InputError):
    """What came is not the file that was recorded or named."""


def downloaded(url: str, expected: str | None = None) -> Path:
    """The file at `url`, in the cache. `expected` is its sha256 if it is known; else the first download's is recorded.

    Raises InputError, in one sentence, if the file cannot be had or is another one.
    """
    found = _looked_up(url, expected, str(cache_folder()))
    if isinstance(found, str):
        raise InputError(found)
    return found


@cache
def _looked_up(url: str, expected: str | None, _: str) -> Path | str:
    """The file, or why it cannot be had: asked once in a process, since each request in vain takes its time."""
    try:
        return _Download(url, expected).file()
    except CacheNotWritable:
        raise
    except InputError as error:
        return str(error)


class _Download:
    """One address and its places in the cache."""

    def __init__(self, url: str, expected: str | None):
        self.url, self.name = url, url.rpartition("/")[2]
        self.home = cache_folder() / KIND / digest({"url": url})
        self.record = self.home.with_suffix(".json")  # is not pruned with the file
        self.partial = self.home.with_name(f".partial-{self.home.name}")
        self._given = expected

    @property
    def expected(self) -> str | None:
        """The file's sha256, as it was given or else recorded, perhaps by another process a moment ago."""
        return self._given or self._recorded().get("sha256")

    def file(self) -> Path:
        target = self.home / self.name
        if self._usable(target):
            return target
        if os.environ.get(OFFLINE, "").lower() in ("1", "true", "yes", "on"):
            raise InputError(f"{OFFLINE} is set")
        with writing_lock(self.home):
            if not self._usable(target):  # another process may have fetched it meanwhile
                target.unlink(missing_ok=True)
                self._fetch()
                self._accept(target)
        return target

    def _usable(self, target: Path) -> bool:
        """Whether the file is there and the recorded one."""
        return mark_used(self.home) and target.is_file() and remembered_sha256(target) == self.expected

    def _recorded(self) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    # --- fetching ----------------------------------------------------------------------------------------------------

    def _fetch(self) -> None:
        """All of the file, in `partial`; what an earlier try or run has left there is continued."""
        self.partial.mkdir(parents=True, exist_ok=True)
        for tried in range(TRIES):
            sleep(PAUSE_S * 2**tried if tried else 0)
            try:
                self._continue()
                return
            except HTTPError as error:
                self._refused(error, last=tried == TRIES - 1)
            except (URLError, HTTPException, OSError) as error:
                if tried == TRIES - 1 or not _passes(error):
                    raise InputError(f"{self.url}: {self._why(error)}") from error

    def _refused(self, error: HTTPError, last: bool) -> None:
        """Raises InputError unless another request may be answered."""
        if error.code == RANGE_WRONG:
            self._data.unlink(missing_ok=True)  # there is more than the server has: begin again
        elif error.code < 500 or last:
            raise InputError(f"{self.url} answers {error.code} {error.reason}") from error

    def _why(self, error: Exception) -> str:
        cause = error.reason if isinstance(error, URLError) else error
        said = first_line(cause) if isinstance(cause, Exception) else str(cause)
        there = f"; {self._size():,} bytes are kept, and the same command continues" if self._size() else ""
        return (said or type(cause).__name__) + there

    def _continue(self) -> None:
        """One request: the rest of the file, or all of it where the server gives no part or has another version."""
        there, tag = self._size(), self._tag()
        headers = {"User-Agent": "kedit", "Accept-Encoding": "identity"}
        if there and tag:
            headers |= {"Range": f"bytes={there}-", "If-Range": tag}
        with urlopen(Request(self.url, headers=headers), timeout=TIMEOUT_S) as answer:
            continued = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {there}-")
            there = there if continued else 0
            self._note_tag(answer)
            length = answer.headers.get("Content-Length")
            total = there + int(length) if length else None
            self._check_space(total, there)
            self._write(answer, there, total)
        if total is not None and self._size() < total:
            raise _Short(f"the connection ended after {self._size():,} of {total:,} bytes")

    def _write(self, answer: HTTPResponse, there: int, total: int | None) -> None:
        if not there:
            self._data.write_bytes(b"")
        with (
            open(self._data, "ab") as file,
            progress(total=total, initial=there, desc=self.name, unit="B", unit_scale=True) as bar,
        ):
            for chunk in _chunks(answer):
                file.write(chunk)
                bar.update(len(chunk))

    def _check_space(self, total: int | None, there: int) -> None:
        free = disk_usage(self.partial).free
        if total is not None and total - there > free:
            raise InputError(f"{self.url} has {total:,} bytes, but only {free:,} are free in {cache_folder()}")

    @property
    def _data(self) -> Path:
        return self.partial / self.name

    def _size(self) -> int:
        return self._data.stat().st_size if self._data.is_file() else 0

    def _tag(self) -> str:
        """Which version of the file was started; without one nothing can be continued."""
        file = self.partial / ".version"
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def _note_tag(self, answer: HTTPResponse) -> None:
        strong = answer.headers.get("ETag") or ""
        tag = strong if strong and not strong.startswith("W/") else answer.headers.get("Last-Modified") or ""
        (self.partial / ".version").write_text(tag, encoding="utf-8")

    # --- accepting ---------------------------------------------------------------------------------------------------

    def _accept(self, target: Path) -> None:
        """Move it into place and record its sha256, if it is what it should be; else remove it."""
        came = sha256(self._data)
        try:
            self._check(came)
        except InputError:
            self._discard()
            raise
        self.home.mkdir(exist_ok=True)
        os.replace(self._data, target)
        self._discard()
        write_text(self.record, json.dumps({"url": self.url, "sha256": came, "bytes": target.stat().st_size}))

    def _check(self, came: str) -> None:
        expected = self.expected
        if expected and came != expected:
            raise Changed(
                f"{self.url} has now the sha256 {came}, not {expected}, which was expected: the file was changed "
                f"or damaged on its way; if you trust the new one, delete {self.record} (or give dataset.sha256) and "
                "run the same command again"
            )
        with open(self._data, "rb") as file:
            start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
        if self.name.endswith(".json") and not start.startswith(JSON_STARTS):
            raise Changed(f"{self.url} gives no JSON but {start[:24]!r}: perhaps a page that asks you to log in")

    def _discard(self) -> None:
        for file in (self._data, self.partial / ".version"):
            file.unlink(missing_ok=True)
        self.partial.rmdir()


class _Short(ConnectionError):
    """The connection ended before the file did."""


def _passes(error: Exception) -> bool:
    """Whether a further request may go better: the connection was lost, not refused or never there."""
    cause = error.reason if isinstance(error, URLError) else error
    lost = isinstance(cause, HTTPException | TimeoutError | ConnectionError)
    return lost and not isinstance(cause, ConnectionRefusedError)


def _chunks(answer: HTTPResponse) -> Iterator[bytes]:
    while chunk := answer.read(CHUNK):
        yield chunk
