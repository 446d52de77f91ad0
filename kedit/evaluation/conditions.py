"""Probes that count only if a model answers other questions (RippleEdits): the unedited one, or the edited one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from kedit.cases import Condition, Question, condition_question

Row = dict[str, Any]
Grade = Callable[[Question, Any, Any], Sequence[Row]]  # (question, answer, the unedited model's) -> rows
Unmet = Literal["before", "edited"]  # by which model


def conditions_of_the_edited(questions: Iterable[Question]) -> list[Question]:
    """What is asked of the edited model besides these questions, each once."""
    asked = (condition_question(q, c) for q in questions for c in q.probe.conditions if c.edited)
    return list(dict.fromkeys(asked))


def unmet(
    grade: Grade, question: Question, before: Mapping[Question, Any], now: Mapping[Question, Any]
) -> Unmet | None:
    """Which of the probe's conditions is not fulfilled: by the unedited model's answers (`before`), or by those of the
    model under test (`now`; without an answer there it is not edited); in free text if that is scored, else
    teacher-forced."""
    for condition in sorted(question.probe.conditions, key=lambda condition: condition.edited):
        asked = condition_question(question, condition)
        if condition.edited and asked in now and not _met(grade, condition, asked, now[asked], before[asked]):
            return "edited"
        if not condition.edited and not _met(grade, condition, asked, before[asked], before[asked]):
            return "before"
    return None


def _met(grade: Grade, condition: Condition, asked: Question, answer: Any, before: Any) -> bool:
    exact = {row["scoring"]: row["exact"] for row in grade(asked, answer, before) if "exact" in row}
    return bool(exact.get("generate", exact.get("forced"))) == condition.right


def uncounted_rows(question: Question, scoring: Sequence[str], by: Unmet) -> list[Row]:
    """One for each way of scoring, without a score; `edit_failed` if it is the edited model that keeps it out."""
    probe = question.probe
    place = {"case": question.case, "kind": probe.kind, "group": probe.group, "probe": question.index}
    why = {"skipped": 1} | ({"edit_failed": 1} if by == "edited" else {})
    return [place | {"scoring": way} | why for way in scoring]
