"""What language models have replied, on disk: nothing that was paid for is asked, or paid, twice."""

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import Timeout

from kedit.common.cache import cache_folder, digest, mark_used, writing_lock

log = logging.getLogger(__name__)


class Replies:
    """The replies of one model with one way of decoding (`asked`: all that a reply depends on besides the prompt).

    Each is a file of its own, `$KEDIT_CACHE/replies/<hash of asked>/<hash of the prompt>.json`, in place as soon as it
    is known. A file that cannot be read counts as none.
    """

    def __init__(self, asked: Mapping[str, Any]):
        self.folder: Path = cache_folder() / "replies" / digest(dict(asked))
        mark_used(self.folder)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While one process asks, the others wait; then they read what it got."""
        lock = writing_lock(self.folder)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("another run is asking the same model: waiting for its replies")
            lock.acquire()
        try:
            self.folder.mkdir(exist_ok=True)
            yield
        finally:
            lock.release()

    def get(self, prompt: str) -> str | None:
        try:
            kept = json.loads(self._file(prompt).read_text(encoding="utf-8"))
            return str(kept["reply"]) if kept["prompt"] == prompt else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, prompt: str, reply: str) -> None:
        """May be called from several threads."""
        file = self._file(prompt)
        new = file.with_name(f".{file.stem}.{os.getpid()}.{threading.get_ident()}")
        new.write_text(json.dumps({"prompt": prompt, "reply": reply}, ensure_ascii=False, indent=1), encoding="utf-8")
        os.replace(new, file)

    def __bool__(self) -> bool:
        """Whether any reply is kept."""
        return any(self.folder.glob("*.json"))

    def _file(self, prompt: str) -> Path:
        return self.folder / f"{digest(prompt)}.json"
