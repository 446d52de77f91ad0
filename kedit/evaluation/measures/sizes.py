"""What a benchmark's number rests on: how many documents, of which tasks, and how much of the published set that is."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from kedit.common.cache import digest
from kedit.evaluation.measures.task_files import LocalTask, members


@cache
def published() -> dict[str, int]:
    """Documents of the published sets, by the names of lm-eval's tasks."""
    return dict(yaml.safe_load((Path(__file__).parent / "published_sizes.yaml").read_text(encoding="utf-8")))


def description(name: str, tasks: Sequence[Any], local: LocalTask | None, limit: int | None) -> dict[str, Any]:
    """JSON-able; `said` is a caption's words, empty if the whole published set is asked."""
    asked = sum(min(len(task.eval_docs), limit or len(task.eval_docs)) for task in tasks)
    shots = sorted({int(task.get_config("num_fewshot") or 0) for task in tasks})
    known = {"n": asked, "num_fewshot": shots[0] if len(shots) == 1 else shots, "limit": limit}
    if local is None:
        return known | {"source": "hub", "said": _limited(asked, sum(len(task.eval_docs) for task in tasks), limit)}
    source = {"source": local.source, "sha256": digest(local.documents)}
    if local.generated:
        said = f"made by kedit{', ' * bool(limit)}{_limited(asked, local.size, limit)}"
    else:
        said = _excerpt(name, tasks, local, asked, limit)
    return known | source | {"said": ", ".join(filter(None, [said, _examples(local) if any(shots) else ""]))}


def _examples(local: LocalTask) -> str:
    if local.examples:
        return "examples from questions of the file that are not tested"
    return "examples from the other questions that are tested"


def _limited(asked: int, there: int, limit: int | None) -> str:
    return (
        ""
        if asked == there
        else f"the first {limit} of each task, {asked} of {there}"
        if asked != limit
        else (f"the first {asked} of {there}")
    )


def _excerpt(name: str, tasks: Sequence[Any], local: LocalTask, asked: int, limit: int | None) -> str:
    """Whether a local file is all that was published."""
    whole, everything = published().get(name), members(name)
    parts = [f"{len(tasks)} of {len(everything)} tasks"] if len(tasks) < len(everything) else []
    if whole is not None and local.size < whole:
        parts.append(f"{local.size} of {whole} documents")
    said = [f"excerpt: {', '.join(parts)}"] if parts else []
    said += ["a local file whose published size kedit does not know"] if whole is None else []
    return ", ".join([*said, *([limited] if (limited := _limited(asked, local.size, limit)) else [])])
