"""Ordinary text: Wikipedia, a file, or documents of the embedded world."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from kedit.common.cache import digest, remembered_sha256
from kedit.common.errors import InputError, first_line
from kedit.common.text_files import read_lines

WIKIPEDIA = ("wikimedia/wikipedia", "20231101.en")  # https://huggingface.co/datasets/wikimedia/wikipedia
SHUFFLE = 10_000  # articles that are shuffled together when Wikipedia is streamed
PIECE = 2**16  # characters; longer documents are cut, so that none needs more memory

NAMED = ("wikipedia", "world")


@dataclass(frozen=True)
class Stream:
    """A corpus that is read from its beginning, document by document, in always the same order."""

    name: str
    identity: Mapping[str, Any]  # everything the texts depend on; known without reading them
    documents: Callable[[], Iterator[str]]


def stream(source: str, option: str = "editor.statistics.corpus") -> Stream:
    """The documents of `source`, one after another: "wikipedia" (a hub dataset, shuffled), "world" (endless text of the
    kind that the embedded model was trained on), or a file: .jsonl with a field "text", or plain text with blank lines
    between documents. A long document is cut into pieces. `option` is where the user names the source."""
    if source == "wikipedia":
        return Stream(source, {"dataset": WIKIPEDIA, "shuffled": 0}, lambda: _pieces(_wikipedia_stream(option)))
    if source == "world":
        from kedit.world import running_text

        return Stream(source, {"world": digest(list(islice(running_text(), 500)))}, running_text)
    path = _file(source)
    return Stream(path.name, {"sha256": remembered_sha256(path)}, lambda: _pieces(_read(path, PIECE)))


@cache
def texts(source: str, option: str = "editor.texts.source") -> Sequence[str]:
    """The documents of `source`, to draw samples from: as `stream`, but Wikipedia in its own order, "world" as 2000
    biographies and contexts about people who are kept for training, and long documents whole."""
    if source == "wikipedia":
        return _wikipedia(option)["text"]
    if source == "world":
        from kedit.world import documents

        return documents(2000)
    documents_ = list(_read(_file(source)))
    if not documents_:
        raise InputError(f"the corpus {source} has no text; give another file")
    return documents_


def _file(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(f"the corpus {source} is no file; give a file of texts, wikipedia, or world")
    return path


def _read(path: Path, most: int = sys.maxsize) -> Iterator[str]:
    """The documents of a file that are not empty. In plain text a document ends before a blank line, or with the line
    at which it has `most` characters."""
    lines = read_lines(path)
    for document in _json_lines(lines, path) if path.suffix == ".jsonl" else _paragraphs(lines, most):
        if document:
            yield document


def _paragraphs(lines: Iterable[str], most: int) -> Iterator[str]:
    held, length = [], 0
    for line in lines:
        held.append(line)
        length += len(line)
        if line == "\n" or length >= most:
            yield "".join(held).strip()
            held, length = [], 0
    yield "".join(held).strip()


def _json_lines(lines: Iterable[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f'{path}: line {number} is no JSON object with a field "text"; correct it') from error
        if not isinstance(text, str):
            raise InputError(f'{path}: line {number}: field "text" is {type(text).__name__}; give a text')
        yield text


def _pieces(documents: Iterator[str]) -> Iterator[str]:
    """Each document in pieces of at most PIECE characters, cut at a blank if there is one."""
    for document in documents:
        begin = 0
        while len(document) - begin > PIECE:
            end = document.rfind(" ", begin + 1, begin + PIECE + 1)
            end = begin + PIECE if end < 0 else end
            yield document[begin:end]
            begin = end
        yield document[begin:]


def _wikipedia_stream(option: str) -> Iterator[str]:
    """Articles, shuffled, from the hub as they are needed; if it cannot be reached, from a copy that `datasets` has
    downloaded before."""
    from datasets import load_dataset

    name, subset = WIKIPEDIA
    try:
        rows = load_dataset(name, subset, split="train", streaming=True).shuffle(seed=0, buffer_size=SHUFFLE)
    except (OSError, ValueError):
        rows = _wikipedia(option).shuffle(seed=0)
    return (row["text"] for row in rows)


def _wikipedia(option: str) -> Any:
    from datasets import load_dataset

    name, subset = WIKIPEDIA
    try:
        return load_dataset(name, subset, split="train")
    except (OSError, ValueError) as error:
        raise InputError(
            f"Wikipedia ({name}, {subset}) cannot be loaded ({first_line(error)}); give a file of texts instead with "
            f"{option}=FILE"
        ) from error
