"""JSON files as people write them: read, or refused in one sentence that names the file, the record and the field.

What is read: one JSON value, or several one after another (JSON lines), whatever the file is called; with or without a
byte order mark. What is refused: anything that would change a number in silence or fail hours later, such as another
encoding, half a character, a field that is given twice.
"""

import json
import re
from collections.abc import Iterator, Sequence
from json.decoder import scanstring  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

from kedit.common.errors import InputError
from kedit.data.missing_files import check_file

DIGITS = 400  # most digits of an integer; Python itself refuses more than 4300
_BLANK = re.compile("[ \t\r\n\ufeff]*")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTE = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of a byte that is not UTF-8
_SUSPECT = re.compile(r"\\u(0000|[dD][89a-fA-F])|[\ud800-\udfff]")  # only in such a file a string can be damaged
# how a file begins that is no text at all
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff", b"[\x00", b"\x00[", b"{\x00", b"\x00{")

Step = str | int  # a field's name, or a place in a list


class Refused(ValueError):
    """JSON that Python would read, and that cannot be meant."""


def read_json(path: Path, option: str) -> list[Any]:
    """Every JSON value of the file that the user gives with `option`: one, or one for each line. Raises InputError."""
    check_file(path, option)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); give a readable file with {option}=FILE"
        ) from error
    text = _decoded(path, data)
    values: list[Any] = []
    at = _skip(text, 0)
    while at < len(text):
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise InputError(_explained(path, text, at, len(values), error)) from error
        values.append(value)
        at = _skip(text, end)
    for steps, wrong in _damage(values, text) if _SUSPECT.search(text) else ():
        raise InputError(f"{path}{_place(steps, len(values) == 1)} {wrong}")
    return values


def _decoded(path: Path, data: bytes) -> str:
    """The text. Bytes that are not UTF-8 stay in it as lone surrogates, so that the field that holds one is found."""
    for begin, packer in _PACKED.items():
        if data.startswith(begin):
            raise InputError(f"{path} is compressed ({packer}); unpack it first")
    if data.startswith(_UTF_16):
        raise InputError(f"{path} is UTF-16 text; save it as UTF-8, e.g. with iconv -f utf-16 -t utf-8")
    if data.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the file itself; download it with git lfs pull")
    return data.decode("utf-8", "surrogateescape")


def _skip(text: str, at: int) -> int:
    return _BLANK.match(text, at).end()  # type: ignore[union-attr]


# --- what Python's reader would let pass -----------------------------------------------------------------------------


def _object(pairs: list[Any]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Refused(f"field {twice!r} is given twice; keep one of them")
    return fields


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise Refused(f"holds a number of {len(digits)} digits; give a text, or the number that is meant")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


def _damage(values: Sequence[Any], text: str) -> Iterator[tuple[list[Step], str]]:
    """(steps down to it, what is wrong) of each string in the values of a text that cannot be meant."""
    utf8 = not _not_utf8(text)
    stack: list[tuple[Any, list[Step]]] = [(value, [i]) for i, value in reversed(list(enumerate(values)))]
    while stack:
        value, steps = stack.pop()
        if isinstance(value, str) and (wrong := _wrong_string(value, utf8)):
            yield steps, wrong
        elif isinstance(value, dict):
            stack += reversed([(both, [*steps, name]) for name, part in value.items() for both in (name, part)])
        elif isinstance(value, list):
            stack += reversed([(part, [*steps, i]) for i, part in enumerate(value)])


def _wrong_string(value: str, utf8: bool) -> str:
    """What is wrong with a string of a file that is UTF-8, or not; empty if nothing is."""
    if "\0" in value:
        return "holds a null character (\\u0000); remove it"
    if not utf8 and (wrong := _not_utf8(value)):
        return wrong
    half = _SURROGATE.search(value)
    code = ord(half[0]) if half else 0
    return f"holds \\u{code:04x}, one half of a character (a lone surrogate); write the whole character" if half else ""


def _not_utf8(text: str) -> str:
    """What is wrong if the text has a byte that is not UTF-8."""
    byte = _BYTE.search(text)
    if byte is None:
        return ""
    return (
        f"holds the byte 0x{ord(byte[0]) - 0xDC00:x}, which is not UTF-8 (Latin-1 perhaps); save the file as UTF-8, "
        "e.g. with iconv -f latin1 -t utf-8"
    )


# --- where a file is wrong -------------------------------------------------------------------------------------------


def _explained(path: Path, text: str, at: int, index: int, error: Exception) -> str:
    """The sentence for the value at `at` that cannot be read; `index` values were read before it."""
    steps, error = _faulty(text, at, error)
    if isinstance(error, RecursionError):
        steps = steps[:2]
    where = f"{path}{_place([index, *steps], index == 0)}"
    if isinstance(error, RecursionError):
        return f"{where} is nested too deeply; give a text, a list of texts, or a list of lists of texts"
    if not isinstance(error, json.JSONDecodeError):
        return f"{where}{'' if str(error).startswith('holds') else ':'} {error}"
    if encoding := _not_utf8(text):
        return f"{path} {encoding}"
    comma = " after a comma" if text[: error.pos].rstrip(" \t\r\n").endswith(",") else ""
    return (
        f"{where}: not json (line {error.lineno}, column {error.colno}: {error.msg}{comma}); expected a JSON list of "
        "records, or one JSON record in each line"
    )


def _faulty(text: str, at: int, error: Exception, depth: int = 5) -> tuple[list[Step], Exception]:
    """The steps down to the part at `at` that cannot be read, and what its reader says."""
    opening = text[at : at + 1]
    if depth == 0 or opening not in ("[", "{"):
        return [], error
    at, count = _skip(text, at + 1), 0
    while True:
        name, at = _name(text, at) if opening == "{" else (count, at)
        try:
            end = _DECODER.raw_decode(text, at)[1] if name is not None else len(text)
        except (ValueError, RecursionError) as below:
            steps, cause = _faulty(text, at, below, depth - 1)
            return [*([] if name is None else [name]), *steps], cause
        at, count = _skip(text, end), count + 1
        if text[at : at + 1] != ",":
            return [], error
        at = _skip(text, at + 1)


def _name(text: str, at: int) -> tuple[str | None, int]:
    """A field's name, and where its value begins; None if there is no name."""
    try:
        name, end = scanstring(text, at + 1) if text[at : at + 1] == '"' else (None, at)
    except ValueError:
        return None, at
    return name, _skip(text, _skip(text, end) + 1)  # behind the colon


def _place(steps: Sequence[Step], alone: bool) -> str:
    """What stands between the file's name and what is wrong, e.g. ": record 3, field 'locality.Forgetfulness[0]'". The
    first step counts the values of the file; a list that is `alone` in it holds the records."""
    own = list(steps)
    if alone and (len(own) == 1 or isinstance(own[1], int)):
        own = own[1:]
    if not own:
        return ""
    name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in own[1:]).lstrip(".")
    return f": record {own[0]}" + (f", field {name!r}" if name else "")
