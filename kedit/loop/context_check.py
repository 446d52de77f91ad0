"""Texts that are longer than the model's context are refused before anything is edited."""

from collections.abc import Callable, Iterator, Sequence

from kedit.cases import Case
from kedit.common.errors import InputError
from kedit.evaluation.evaluator import Evaluator
from kedit.lm import LM
from kedit.loop.settings import Step
from kedit.loop.step_runner import all_questions

Where = Callable[[Case, str], str]  # where a text of a case stands in the data


def check_lengths(lm: LM, steps: Sequence[Step], evaluator: Evaluator, where: Where) -> None:
    """Raises InputError naming file, record and field of the first edit or question that is longer, with its answer,
    than the model's context. What an editor puts before a prompt is not known yet and does not count."""
    cases = {case.id: case for step in steps for case in (*step.edit, *step.test)}
    for id, prompt, read, answer in _texts(lm, steps, evaluator):
        if _longest(read, answer) <= lm.context:
            continue
        [pair] = lm.text.pairs([read], [answer])
        if len(pair.ids) > lm.context:
            place = where(cases[id], prompt if len(prompt) >= len(answer) else answer)
            raise InputError(
                f"{place}: the prompt {_cut(prompt)!r} with its answer {_cut(answer)!r} has {len(pair.ids)} tokens, "
                f"more than the model's context ({lm.context}); shorten it, remove the record, or choose a model that "
                "reads more"
            )


def _texts(lm: LM, steps: Sequence[Step], evaluator: Evaluator) -> Iterator[tuple[str, str, str, str]]:
    """(case, prompt, prompt as the model reads it, answer) of all edits and of all questions."""
    for case in (case for step in steps for case in step.edit):
        for edit in case.edits:
            for answer in (edit.target_new, edit.target_old):
                if answer:
                    yield case.id, edit.prompt, edit.prompt, answer
    for question, read, answer in evaluator.scored_texts(lm, all_questions(steps, evaluator)):
        yield question.case, question.probe.prompt, read, answer


def _longest(prompt: str, answer: str) -> int:
    """No fewer than the tokens that the two can have together: a token holds at least one byte."""
    return len(prompt.encode()) + len(answer.encode()) + 16


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
