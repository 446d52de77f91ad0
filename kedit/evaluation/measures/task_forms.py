"""Files of benchmarks as they are passed around, in the fields of the hub's data sets that lm-eval's tasks read.

A form says which files it recognises and gives the documents of each task in it, by the task's name.
"""

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kedit.common.errors import InputError
from kedit.data.records import read_any

Document = dict[str, Any]
Documents = dict[str, list[Document]]  # by task

NLI = {"entailment": 0, "neutral": 1, "contradiction": 2}  # GLUE's labels of MNLI
LETTERS = {"option1": "1", "option2": "2"}
WINOGRANDE = re.compile(r"given sentence:\s*(.*?)\s*\n+Option1: (.*?) Option2: (.*?) Answer format", re.DOTALL)


def documents_of(path: Path, task: str, option: str) -> Documents:
    """The documents in a file (JSON, a JSON record in each line, or tab-separated with a header) for a task, or for
    the tasks of a group. Raises InputError, naming file and record, if one is not in the form of the first."""
    data = _table(path, option) if path.suffix == ".tsv" else read_any(path, option)
    if isinstance(data, Mapping):
        return _subjects(path, task, data)
    if not isinstance(data, list) or not data or not all(isinstance(record, Mapping) for record in data):
        raise InputError(f"{path}: holds no list of records; give the benchmark's own file with {option}=FILE")
    convert = next((convert for has, convert in FORMS if has(data[0])), dict)
    return {task: [_converted(path, i, record, convert) for i, record in enumerate(data)]}


def examples_of(path: Path, task: str, option: str) -> Documents:
    """In a file that has splits for each subject, the documents that are not tested, "dev" (lm-eval's) or else
    "validation"; of other files none."""
    data = read_any(path, option) if path.suffix != ".tsv" else []
    if not isinstance(data, Mapping):
        return {}
    found = {
        f"{task}_{subject}": splits.get("dev") or splits.get("validation") or [] for subject, splits in data.items()
    }
    return {
        name: [_converted(path, f"{name}[{i}]", one, dict) for i, one in enumerate(some)]
        for name, some in found.items()
        if some
    }


def _table(path: Path, option: str) -> list[Document]:
    """Quotes are data."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); give a UTF-8 file with {option}=FILE") from error


def _subjects(path: Path, task: str, data: Mapping[str, Any]) -> Documents:
    """MMLU in one file: subject -> split -> documents; lm-eval asks the split "test"."""
    found: Documents = {}
    for subject, splits in data.items():
        test = splits.get("test") if isinstance(splits, Mapping) else None
        if not isinstance(test, list) or not test:
            raise InputError(f"{path}: {subject!r} has no list of questions under 'test'; correct the file")
        found[f"{task}_{subject}"] = [_converted(path, f"{subject}[{i}]", one, dict) for i, one in enumerate(test)]
    return found


def _converted(path: Path, i: int | str, record: Any, convert: Callable[[Any], Document]) -> Document:
    try:
        return convert(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: record {i} is not in the form of the first one ({type(error).__name__}: {error}); correct it"
        ) from error


def _winogrande(record: Mapping[str, Any]) -> Document:
    """LLM-Adapters writes a question as an instruction."""
    parts = WINOGRANDE.search(record["instruction"])
    if parts is None:
        raise ValueError(f"no sentence with two options in {record['instruction'][:60]!r}")
    sentence, first, second = parts.groups()
    if "_" not in sentence:
        raise ValueError(f"no blank in {sentence!r}")
    return {"sentence": sentence, "option1": first, "option2": second, "answer": LETTERS[record["answer"]]}


def _commonsense_qa(record: Mapping[str, Any]) -> Document:
    """The authors' own file nests question and choices."""
    question = record["question"]
    choices = {name: [choice[name] for choice in question["choices"]] for name in ("label", "text")}
    return {"question": question["stem"], "choices": choices, "answerKey": record["answerKey"]}


def _mnli(record: Mapping[str, Any]) -> Document:
    return {
        "premise": record["sentence1"],
        "hypothesis": record["sentence2"],
        "label": NLI[record["gold_label"]],
    }


def _labelled(record: Mapping[str, Any]) -> Document:
    """GLUE's tables with a number as label."""
    return {name: int(value) if name == "label" else value for name, value in record.items()}


FORMS: Sequence[tuple[Callable[[Mapping[str, Any]], bool], Callable[[Any], Document]]] = (
    (lambda record: "instruction" in record and record.get("answer") in LETTERS, _winogrande),
    (lambda record: isinstance(record.get("question"), Mapping), _commonsense_qa),
    (lambda record: "gold_label" in record, _mnli),
    (lambda record: str(record.get("label", "")).isdigit() and "sentence" in record, _labelled),
)
