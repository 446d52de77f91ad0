"""Reading records: every error names the file, the record, the field and what to do."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kedit.common.errors import InputError


class Record:
    """One record of a file, with typed access to its fields."""

    def __init__(self, data: Any, where: str):
        if not isinstance(data, Mapping):
            raise InputError(f"{where} is {type(data).__name__}, not an object with fields; mend the file")
        self.data, self.where = data, where

    def has(self, name: str) -> bool:
        return self.data.get(name) is not None

    def text(self, *names: str, blank: bool = False) -> str:
        """The first of these fields that is there; it must be a text, and not a blank one."""
        name = next((n for n in names if self.has(n)), names[0])
        value = self.data.get(name)
        if value is None:
            raise self.error(name, f"is missing; give a text ({' or '.join(names)})")
        if not isinstance(value, str):
            raise self.error(name, f"is {type(value).__name__} {str(value)[:40]!r}; give a text")
        if not blank and not value.strip():
            raise self.error(name, "is blank; give a text")
        return value

    def texts(self, name: str) -> list[str]:
        value = self.data.get(name, [])
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self.error(name, "is not a list of texts; mend it")
        return value

    def part(self, name: str) -> "Record":
        """A field that is an object itself; empty where it is absent."""
        value = self.data.get(name)
        return Record({} if value is None else value, f"{self.where}, {name}")

    def error(self, name: str, wrong: str) -> InputError:
        return InputError(f"{self.where}: field {name!r} {wrong}")


def answers(value: Any, record: Record, name: str) -> tuple[str, ...]:
    """Acceptable strings, the canonical one first, from a str, a list, or a list of lists (objects with their aliases).

    The canonical one is what descending with a = a[0] ends at, as EasyEdit does; empty where that is blank or absent.
    """
    first = value
    while isinstance(first, list):
        first = first[0] if first else ""
    flat = list(_flat(value))
    if not isinstance(first, str) or not all(isinstance(text, str) for text in flat):
        raise record.error(
            name, f"holds {str(value)[:40]!r}; give a text, a list of texts, or a list of lists of texts"
        )
    return tuple(dict.fromkeys([first, *(text for text in flat if text.strip())])) if first.strip() else ()


def _flat(value: Any) -> list[Any]:
    return [text for part in value for text in _flat(part)] if isinstance(value, list) else [value]


def read_records(path: Path, option: str = "dataset.path") -> Iterator[Record]:
    """The records of a json or jsonl file, which the user gives with this option."""
    data = read_any(path, option)
    if not isinstance(data, list) or not data:
        raise InputError(f"{path}: holds no list of records; give the benchmark's own json file")
    for i, fields in enumerate(data):
        yield Record(fields, f"{path}: record {i}")


def read_any(path: Path, option: str) -> Any:
    """What a json file holds; of a jsonl file its lines."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; give the data file with {option}=FILE") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a UTF-8 json file") from error
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: not json (line {error.lineno}: {error.msg}); give the benchmark's own json file"
        ) from error
