"""Records of a data file: every error names the file, the record, the field and what to do."""

import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kedit.common.errors import InputError
from kedit.data.json_files import read_json

NESTED = 8  # lists inside one another that answers may come in


class Record:
    """One record of a file, with typed access to its fields. It remembers which of them were read."""

    def __init__(self, data: Any, where: str):
        if not isinstance(data, Mapping):
            raise InputError(f"{where} is {_kind(data)}, not an object with fields; correct the file")
        self.data, self.where = data, where
        self.read: set[str] = set()  # names that were looked for
        self._empty: str | None = None  # a field that was read with `blank` and holds nothing
        self._parts: dict[str, list[Record]] = {}

    def get(self, name: str, default: Any = None) -> Any:
        """The field's value."""
        self.read.add(name)
        return self.data.get(name, default)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.get(name) is not None

    def text(self, *names: str, blank: bool = False) -> str:
        """The first of these fields (other names of one thing) that is there; it must be a text, and not a blank one,
        unless `blank`: then null counts as an empty text."""
        name = self._given(names) if len(names) > 1 else names[0]
        value = self.get(name)
        if blank and name in self.data and (value is None or (isinstance(value, str) and is_blank(value))):
            self._empty = name
            return value or ""
        if value is None:
            null = " (null)" if name in self.data else ""
            raise self.error(name, f"is missing{null}; give a text ({' or '.join(names)})")
        if not isinstance(value, str):
            raise self.error(name, f"is {_kind(value)} {str(value)[:40]!r}; give a text")
        if not blank and is_blank(value):
            raise self.error(name, "is blank; give a text that is not empty")
        return value

    def _given(self, names: tuple[str, ...]) -> str:
        """The first of these fields that is there, if possible with a value."""
        there = [name for name in names if name in self.data]
        return next((name for name in there if self.data[name] is not None), (there or names)[0])

    def texts(self, name: str) -> list[str]:
        """A list of texts, none of them blank; empty if the field is absent."""
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self.error(
                name, f"is not a list of texts but {_kind(value)} {str(value)[:40]!r}; give a list of texts"
            )
        for i, text in enumerate(value):
            if is_blank(text):
                raise self.error(f"{name}[{i}]", "is blank; give a text that is not empty, or remove it")
        return value

    def answers(self, name: str) -> tuple[str, ...]:
        """See `answers`; the field must be there."""
        if name not in self.data:
            raise self.error(name, "is missing; give a text, a list of texts, or a list of lists of texts")
        return answers(self.get(name), self, name)

    def optional_answers(self, name: str) -> tuple[str, ...]:
        """See `answers`; empty if the field is absent or null."""
        return answers(self.get(name), self, name) if self.has(name) else ()

    def part(self, name: str) -> "Record":
        """A field that is an object itself; empty if it is absent."""
        value = self.get(name)
        if name not in self._parts:
            self._parts[name] = [Record({} if value is None else value, f"{self.where}, {name}")]
        return self._parts[name][0]

    def parts(self, name: str) -> list["Record"]:
        """A field that is a list of objects; empty if it is absent."""
        value = self.get(name)
        if value is not None and not isinstance(value, list):
            raise self.error(name, f"is not a list of questions but {_kind(value)}; give a list of objects with fields")
        self._parts[name] = [Record(item, f"{self.where}.{name}[{i}]") for i, item in enumerate(value or [])]
        return self._parts[name]

    def unused(self) -> list[str]:
        """The fields that nobody has read, those of parts by dotted names."""
        own = [name for name in self.data if name not in self.read]
        below = [f"{name}.{field}" for name, parts in self._parts.items() for part in parts for field in part.unused()]
        return list(dict.fromkeys([*own, *below]))

    @property
    def empty_field(self) -> str | None:
        """The dotted name of a text that was allowed to be blank, and is."""
        below = ((name, part.empty_field) for name, parts in self._parts.items() for part in parts)
        return self._empty or next((f"{name}.{field}" for name, field in below if field), None)

    def error(self, name: str, wrong: str) -> InputError:
        return InputError(f"{self.where}: field {name!r} {wrong}")


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def is_blank(text: str) -> bool:
    """Whether a reader sees nothing: blanks, control and format characters (e.g. a zero-width space) alone."""
    if text.isprintable() or not text.strip():
        return not text.strip()
    return all(char.isspace() or unicodedata.category(char) in ("Cc", "Cf") for char in text)


def answers(value: Any, record: Record, name: str) -> tuple[str, ...]:
    """Acceptable strings, the canonical one first, from a str, a list, or a list of lists (objects with their aliases).

    The canonical one is what descending with a = a[0] ends at, as EasyEdit does (docs/data.md); empty if that is blank
    or absent.
    """
    if isinstance(value, str):
        return () if is_blank(value) else (value,)
    first = value
    while isinstance(first, list):
        first = first[0] if first else ""
    flat = list(_flat(value, NESTED))
    if not isinstance(first, str) or not all(isinstance(text, str) for text in flat):
        raise record.error(
            name, f"holds {str(value)[:40]!r}; give a text, a list of texts, or a list of lists of texts"
        )
    return () if is_blank(first) else tuple(dict.fromkeys([first, *(text for text in flat if not is_blank(text))]))


def _flat(value: Any, depth: int) -> list[Any]:
    """What the lists hold, down to so many lists inside one another."""
    if not isinstance(value, list) or not depth:
        return [value]
    return [text for part in value for text in _flat(part, depth - 1)]


def read_records(path: Path, option: str = "dataset.path") -> Iterator[Record]:
    """The records of a file, which the user gives with this option: a JSON list of objects, or an object for each
    line."""
    values = read_json(path, option)
    records = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    if not records or (records is values and records == [{}]):
        raise InputError(
            f"{path}: holds no list of records; expected a JSON list of records, or one JSON record in each line"
        )
    if records is values and len(values) == 1:
        _refuse_named_records(path, values[0])
    for i, fields in enumerate(records):
        yield Record(fields, f"{path}: record {i}")


def _refuse_named_records(path: Path, value: Any) -> None:
    """An object whose values are all records, under their ids, has no order that is meant."""
    if not isinstance(value, Mapping):
        raise InputError(
            f"{path}: holds no list of records but one {_kind(value)}; expected a JSON list of records, or one JSON "
            "record in each line"
        )
    parts = [part.keys() for part in value.values() if isinstance(part, Mapping)]
    shared = set[str]().union(*parts).intersection(*parts) if len(parts) == len(value) else set()
    if shared and (len(parts) > 1 or next(iter(value)).isdigit()):
        raise InputError(
            f"{path}: holds one object with a record under each name ({', '.join(list(value)[:3])}, ...), no list of "
            "records; give the list of its values"
        )


def read_any(path: Path, option: str) -> Any:
    """What a JSON file holds; of a file with a value in each line the list of them."""
    values = read_json(path, option)
    if len(values) != 1:
        return values
    [value] = values
    lines = path.suffix == ".jsonl" and not (isinstance(value, list) and all(isinstance(v, dict | list) for v in value))
    return values if lines else value


def find_field(path: Path, index: int, text: str, subject: str | None = None) -> str | None:
    """Which field of a record has this text (or is a template that has it with `subject` in the place of {})."""
    records = read_any(path, "dataset.path")
    if not isinstance(records, list) or index >= len(records):
        return None
    stack: list[tuple[str, Any]] = [("", records[index])]
    while stack:
        name, value = stack.pop()
        if isinstance(value, str) and text.strip() in (value.strip(), value.replace("{}", subject or "{}").strip()):
            return name
        if isinstance(value, dict):
            stack += reversed([(f"{name}.{field}".lstrip("."), part) for field, part in value.items()])
        if isinstance(value, list):
            stack += reversed([(f"{name}[{i}]", part) for i, part in enumerate(value)])
    return None
