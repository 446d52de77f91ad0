"""The unedited model's answers to benchmarks: asked once, kept on disk, shared by every editor, setting and sweep."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kedit.common.cache import cached, digest
from kedit.evaluation.baseline import model_context
from kedit.lm import LM

FILE = "answers.json"
FORM = 1  # version of a cached answer's form


class UneditedAnswers:
    """Answers by all that was asked together (a task's requests). Of a model without identity (one built in memory)
    they are kept in memory only."""

    def __init__(self) -> None:
        self._known: dict[str, list[Any]] = {}

    def of(self, lm: LM) -> Callable[[str, Sequence[Any], Callable[[], list[Any]]], list[Any]]:
        """What LmEvalModel asks: (kind, requests, compute) -> answers. `compute` asks the unedited model."""
        model = model_context(lm)

        def answers(kind: str, requests: Sequence[Any], compute: Callable[[], list[Any]]) -> list[Any]:
            key = {"form": FORM, "kind": kind, "requests": digest(requests), **model}
            name = digest(key | {"in memory": id(lm)} if lm.identity is None else key)
            if name not in self._known:
                self._known[name] = compute() if lm.identity is None else _kept(key, compute)
            return self._known[name]

        return answers


def _kept(key: dict[str, Any], compute: Callable[[], list[Any]]) -> list[Any]:
    def build(folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(compute()), encoding="utf-8")

    answers = json.loads((cached("benchmark-answers", key, build) / FILE).read_text(encoding="utf-8"))
    return [tuple(answer) if isinstance(answer, list) else answer for answer in answers]
