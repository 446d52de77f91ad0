"""Probes that count only if the unedited model answers other questions (RippleEdits)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kedit.cases import Question, condition_question

Row = dict[str, Any]


def fulfilled(
    grade: Callable[[Question, Any, Any], Sequence[Row]], question: Question, before: Mapping[Question, Any]
) -> bool:
    """Whether the unedited model's answers (`before`) fulfil the probe's conditions: in free text if that is asked for,
    else teacher-forced. `grade` makes rows of a question, an answer and the unedited model's."""
    for condition in question.probe.conditions:
        asked = condition_question(question, condition)
        exact = {row["scoring"]: row["exact"] for row in grade(asked, before[asked], before[asked])}
        if bool(exact.get("generate", exact.get("forced"))) != condition.right:
            return False
    return True


def uncounted_rows(question: Question, scoring: Sequence[str]) -> list[Row]:
    """One for each way of scoring, without a score."""
    probe = question.probe
    place = {"case": question.case, "kind": probe.kind, "group": probe.group, "probe": question.index}
    return [place | {"scoring": way, "skipped": 1} for way in scoring]
