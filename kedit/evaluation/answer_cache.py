"""The unedited model's answers on disk: an SQLite file for each model and way of asking, with a row for each question.

A look-up costs what is asked, not what was ever kept. `sqlite3 answers.sqlite` shows what is there; each row has a hash
of its content. Several processes may read and write at once.
"""

import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

FILE = "answers.sqlite"
FORM = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, question TEXT, answer TEXT, sha256 TEXT)"
TOGETHER = 500  # questions in one query
WAIT_S = 60.0  # for another process's write
DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


class AnswerCache:
    """Answers (JSON objects) by their questions (texts), in one folder."""

    def __init__(self, folder: Path):
        self.file = folder / FILE

    def get(self, questions: Iterable[str]) -> dict[str, Any]:
        """Those that are kept and undamaged."""
        if not self.file.exists():
            return {}
        try:
            with closing(self._open("ro")) as answers:
                return dict(self._rows(answers, list(questions)))
        except sqlite3.Error as error:
            if _is_damage(error):
                log.warning("the cached answers in %s are damaged (%s) and are asked again", self.file, error)
            return {}

    def _rows(self, answers: sqlite3.Connection, questions: Sequence[str]) -> Iterator[tuple[str, Any]]:
        for start in range(0, len(questions), TOGETHER):
            some = questions[start : start + TOGETHER]
            places = ",".join("?" * len(some))
            found = answers.execute(f"SELECT * FROM answers WHERE key IN ({places})", [_hash(text) for text in some])
            for _, question, answer, known in found:
                if _hash(question, answer) == known:
                    yield question, json.loads(answer)
                else:
                    log.warning("a cached answer in %s is damaged and is asked again: %s", self.file, question)

    def keep(self, answers: Mapping[str, Any]) -> None:
        """Add these, or replace them. The caller holds the folder's lock."""
        self.file.parent.mkdir(exist_ok=True)
        texts = {question: json.dumps(answer, ensure_ascii=False) for question, answer in answers.items()}
        rows = [(_hash(question), question, answer, _hash(question, answer)) for question, answer in texts.items()]
        try:
            self._write(rows)
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise
            self.file.unlink()
            self._write(rows)

    def _write(self, rows: Sequence[tuple[str, ...]]) -> None:
        with closing(self._open("rwc")) as answers, answers:
            answers.execute(FORM)
            answers.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", rows)

    def _open(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(f"{self.file.absolute().as_uri()}?mode={mode}", uri=True, timeout=WAIT_S)


def _hash(*texts: str) -> str:
    return sha256("\n".join(texts).encode("utf-8")).hexdigest()


def _is_damage(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorname", "") in DAMAGED
