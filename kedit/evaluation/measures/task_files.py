"""lm-eval's tasks on local files: the official prompts, the documents of a file.

A folder is made in the cache, with a yaml for each task that includes lm-eval's own and reads the file's documents in
place of the hub's; lm-eval loads it like any other folder of tasks.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from kedit.common.cache import cached, digest
from kedit.common.errors import InputError
from kedit.evaluation.measures.task_forms import Document, documents_of, examples_of

ENDINGS = (".json", ".jsonl", ".tsv")
OPTION = "eval.measures.lm_eval"
FORM = 2  # version of the folder's form
TESTED, EXAMPLES = "test", "examples"  # splits: of what is tested, of what few-shot prompts show


@dataclass(frozen=True)
class LocalTask:
    """A task, or a group of tasks, with documents that are at hand."""

    name: str
    documents: Mapping[str, Sequence[Document]]  # by the names of its tasks
    source: str
    generated: bool = False  # by kedit, not a benchmark's file
    examples: Mapping[str, Sequence[Document]] = field(
        default_factory=dict
    )  # for few-shot prompts, if the file has any

    @property
    def size(self) -> int:
        return sum(map(len, self.documents.values()))


def file_for(task: str, folder: Path) -> Path | None:
    """The file in a folder (or in its subfolder "benchmarks") whose name begins with the task's. Raises InputError if
    there are several."""
    places = [place for place in (folder, folder / "benchmarks") if place.is_dir()]
    named = [
        file
        for place in places
        for file in sorted(place.iterdir())
        if file.suffix in ENDINGS and _letters(file.stem).startswith(_letters(task))
    ]
    if len(named) > 1:
        raise InputError(
            f"{OPTION}.data={folder} has {len(named)} files for {task} ({', '.join(file.name for file in named)}); "
            f"choose one with +{OPTION}.files.{task}=FILE"
        )
    return named[0] if named else None


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def local_task(task: str, path: Path, option: str) -> LocalTask:
    """The task with the documents of a file."""
    if not path.is_file():
        raise InputError(f"{option}={path}: no such file; give the benchmark's file, or null to take the hub's")
    if path.suffix not in ENDINGS:
        raise InputError(f"{option}={path}: give a file that ends in {', '.join(ENDINGS)}")
    return LocalTask(task, documents_of(path, task, option), str(path), examples=examples_of(path, task, option))


def task_folder(tasks: Sequence[LocalTask]) -> Path:
    """A folder that lm-eval's TaskManager loads, with these tasks."""
    key = {
        "lm_eval": version("lm_eval"),
        "official": str(official_folder()),
        "form": FORM,
        "tasks": {task.name: digest([task.documents, task.examples]) for task in tasks},
    }
    return cached("lm-eval-tasks", key, lambda folder: _write(folder, tasks)) / "tasks"


def _write(folder: Path, tasks: Sequence[LocalTask]) -> None:
    place = folder / "tasks"
    place.mkdir()
    final = folder.parent / folder.name.removeprefix(".building-") / "tasks"
    for task in tasks:
        for name, documents in task.documents.items():
            splits = {TESTED: documents, EXAMPLES: task.examples.get(name, ())}
            files = {split: f"{name}.{split}.jsonl" for split, some in splits.items() if some}
            for split, file in files.items():
                lines = [json.dumps(document, ensure_ascii=False) for document in splits[split]]
                (place / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
            config = _generated(name) if task.generated else _official(name)
            _dump(place / f"{name}.yaml", config | _data({split: str(final / file) for split, file in files.items()}))
        if list(task.documents) != [task.name]:
            _dump(place / f"{task.name}.yaml", _group(task))


def _dump(path: Path, config: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")


def _official(name: str) -> dict[str, Any]:
    """lm-eval's task, but for its data."""
    return {"include": str(official_yaml(name)), "task": name, "dataset_name": None}


def _generated(name: str) -> dict[str, Any]:
    """A multiple-choice task of documents with prompt, choices and answer (its place among the choices)."""
    metrics = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")]
    texts = {"doc_to_text": "{{prompt}}", "doc_to_choice": "choices", "doc_to_target": "answer"}
    return {"task": name, "output_type": "multiple_choice", "metric_list": metrics, **texts, "metadata": {"version": 1}}


def _data(files: Mapping[str, str]) -> dict[str, Any]:
    """The documents of these splits, and no others. Few-shot examples are taken from those that are not tested, or, if
    there are none, from the tested ones: lm-eval leaves out the one that is asked."""
    absent = dict.fromkeys(("training_split", "validation_split"))
    splits = {"test_split": TESTED, "fewshot_split": EXAMPLES if EXAMPLES in files else TESTED}
    return {"dataset_path": "json", "dataset_kwargs": {"data_files": dict(files)}, **absent, **splits}


def _group(task: LocalTask) -> dict[str, Any]:
    """Merged as the official group merges its tasks; only those that are here."""
    config = _read(official_yaml(task.name))
    return {
        "group": task.name,
        "task": list(task.documents),
        "aggregate_metric_list": config.get("aggregate_metric_list"),
        "metadata": config.get("metadata"),
    }


# --- lm-eval's own tasks ---------------------------------------------------------------------------------------------


def official_folder() -> Path:
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent


@cache
def _texts() -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in sorted(official_folder().rglob("*.yaml"))}


def official_yaml(name: str) -> Path:
    """The file of a task or group. (lm-eval's own index takes seconds, because it parses all 14,000.)"""
    pattern = re.compile(rf"^\"?(?:task|group)\"?:\s*[\"']?{re.escape(name)}[\"']?\s*$", re.MULTILINE)
    found = [path for path, text in _texts().items() if pattern.search(text)]
    if not found:
        raise unknown_task(name)
    return found[0]


def unknown_task(name: str) -> InputError:
    """Says which names of lm-eval are similar."""
    pattern = re.compile(r"^\"?(?:task|group)\"?:\s*[\"']?([\w.+-]+)", re.MULTILINE)
    names = {found for text in _texts().values() for found in pattern.findall(text)}
    close = get_close_matches(name, sorted(names), n=3)
    remedy = f"did you mean {' or '.join(close)}?" if close else "`lm_eval ls tasks` lists those it has"
    return InputError(f"{OPTION}.tasks: lm-eval {version('lm_eval')} has no task {name!r}; {remedy}")


def members(name: str) -> list[str]:
    """The tasks of a group, of its groups, and of the tags that it names; of a task itself."""
    config = _read(official_yaml(name))
    if not isinstance(config.get("task"), list):
        return [name]
    return [task for part in config["task"] for task in _members(part if isinstance(part, str) else part["task"])]


def _members(name: str) -> Iterator[str]:
    tagged = [path for path, text in _texts().items() if re.search(rf"^\"?tag\"?:.*\b{re.escape(name)}\b", text, re.M)]
    if tagged:
        yield from (str(_read(path)["task"]) for path in tagged)
    else:
        yield from members(name)


def _read(path: Path) -> dict[str, Any]:
    """A task's yaml with what it includes; functions that it names are left out."""
    config = yaml.load(path.read_text(encoding="utf-8"), _Plain)
    included = config.pop("include", [])
    merged: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included]:
        merged |= _read(path.parent / name)
    return merged | config


class _Plain(yaml.SafeLoader):
    """Reads `!function name` as the name."""


_Plain.add_constructor("!function", lambda loader, node: str(node.value))
