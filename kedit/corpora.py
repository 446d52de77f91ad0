"""Ordinary text: Wikipedia, a file, or the world's own documents."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from kedit.errors import InputError, first_line

WIKIPEDIA = ("wikimedia/wikipedia", "20231101.en")  # https://huggingface.co/datasets/wikimedia/wikipedia

NAMED = ("wikipedia", "world")


@cache
def texts(source: str) -> Sequence[str]:
    """Documents of `source`: "wikipedia" (a hub dataset), "world" (what the embedded model was trained on), or a file:
    .jsonl with a field "text", or plain text with blank lines between documents."""
    if source == "wikipedia":
        return _wikipedia()
    if source == "world":
        from kedit.world import documents

        return documents(2000)
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(f"the corpus {source} is no file; give one, or wikipedia, or world")
    text = path.read_text(encoding="utf-8")
    found = _json_lines(text, path) if path.suffix == ".jsonl" else [part.strip() for part in text.split("\n\n")]
    documents_ = [document for document in found if document]
    if not documents_:
        raise InputError(f"the corpus {source} has no text; give another file")
    return documents_


def _json_lines(text: str, path: Path) -> list[str]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found.append(str(json.loads(line)["text"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'{path}: line {number} is no JSON object with a field "text"; mend the file') from error
    return found


def _wikipedia() -> Sequence[str]:
    from datasets import load_dataset

    name, subset = WIKIPEDIA
    try:
        return load_dataset(name, subset, split="train")["text"]
    except (OSError, ValueError) as error:
        raise InputError(
            f"Wikipedia ({name}, {subset}) cannot be loaded ({first_line(error)}); give a file of texts instead, e.g. "
            "editor.texts.source=FILE"
        ) from error
