"""What a model is asked, and what it says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from kedit.cases import Question
from kedit.lm import Scored

ROOM = 16  # tokens that free generation may go on after the answer's: a model that uses them has not stopped


@dataclass(frozen=True, slots=True)
class StrictReply:
    """A free answer as a strict profile asks for it."""

    text: str  # up to the first stop string
    tokens: list[int]  # new ones, through the one that completes a stop string
    stopped_by: Literal["eos", "string", "length"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says to one question."""

    forced: tuple[Scored, ...] = ()  # teacher-forced on each answer that counts; none for fluency
    generated: str | None = None  # free text: the continuation, or for fluency prompt and continuation
    info: Mapping[str, Any] = field(default_factory=dict)  # the fields of the prompt's route
    competing_answer: Scored | None = None  # teacher-forced on the competing object
    strict: StrictReply | None = None  # None: not asked so


class Ask(NamedTuple):
    """A question with an answer that is scored, and which of several edited models it goes to."""

    question: Question
    answer: str = ""
    variant: int = 0


def room(question: Question, answer: Answer) -> int:
    """Tokens of a free answer."""
    frame = question.probe.frame
    return frame.max_new if frame else max(len(scored.gold) for scored in answer.forced) + ROOM
