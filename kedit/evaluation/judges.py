"""Judges: language models that say whether a free answer is right. Replies are kept on disk by content, so that no
question is asked, or paid, twice; a killed run goes on from what is kept."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import Annotated, Any, NamedTuple

from kedit.cases import Question
from kedit.common.cache import digest
from kedit.common.chat_endpoint import CHARACTERS, ChatEndpoint, Unanswered
from kedit.common.errors import InputError
from kedit.common.options import Rule, Share, has_fields
from kedit.common.reply_cache import Replies
from kedit.lm.local_chat import LocalChat

log = logging.getLogger(__name__)

JudgePrompt = Annotated[
    str, has_fields("question", "gold", "answer"), Rule("a text with {question}, {gold} and {answer}")
]
FIELD = re.compile(r"\{(question|gold|answer)\}")
VERDICT = re.compile(r"^\W*([AB])\b")  # A: right, B: wrong
MOST = 2000  # characters of an answer, in an estimate before there are any


class Judged(NamedTuple):
    """What a judge grades."""

    question: str  # the bare prompt, whatever frame it was asked in
    gold: str
    text: str

    @classmethod
    def of(cls, question: Question, answers: Sequence[str], text: str) -> "Judged":
        """`answers`: those that count; of a question that wants several objects, the first name of each."""
        every = [names[0] for names in question.probe.every]
        return cls(question.probe.prompt, " and ".join(every) if every else " or ".join(answers), text)


Verdicts = Mapping[
    Judged, Mapping[str, bool | None]
]  # text -> each judge's verdict, by the judge's name; None: its reply holds no verdict


@dataclass(kw_only=True, eq=False)
class Judge:
    """`prompt` is what it is asked; a reply that begins with A means right, with B wrong, and any other has no
    verdict: it is kept and counted, and is never taken for wrong. `share` of the texts are graded, chosen by their
    content."""

    prompt: JudgePrompt
    share: Share = 1.0
    name: str = field(default="judge", init=False)

    @property
    def option(self) -> str:
        """Where its options stand, for messages."""
        return f"eval.judges.{self.name}"

    def asked(self) -> Mapping[str, Any]:
        """All that a reply depends on besides the prompt."""
        raise NotImplementedError

    def check(self) -> None:
        """Before a model is loaded. Raises InputError if it cannot be asked."""

    def cost_of(self, texts: int, characters_in: int) -> str:
        """What grading so many texts will cost, at most, in a sentence. Raises InputError if it is too much."""
        raise NotImplementedError

    def send(self, prompts: Sequence[str], keep: Callable[[int, str], None]) -> None:
        """Ask all; `keep` gets each reply with its prompt's index. Raises Unanswered."""
        raise NotImplementedError

    @cached_property
    def replies(self) -> Replies:
        return Replies(self.asked())

    def filled(self, judged: Judged) -> str:
        fields = judged._asdict() | {"answer": judged.text}
        return FIELD.sub(lambda found: str(fields[found[1]]), self.prompt)

    def grades(self, judged: Judged) -> bool:
        """Does the text belong to its share?"""
        return int(digest(list(judged))[:8], 16) < self.share * 2**32

    def verdicts(self, judged: Iterable[Judged]) -> dict[Judged, bool | None]:
        """Verdicts on the texts of its share, each asked once; replies are kept. Raises InputError if none comes."""
        prompts = {one: self.filled(one) for one in judged if self.grades(one)}
        if self._missing(prompts.values()):
            with self.replies.alone():
                self._ask(self._missing(prompts.values()))  # another process may have been first
        return {one: verdict_of(self.replies.get(prompt) or "") for one, prompt in prompts.items()}

    def _missing(self, prompts: Iterable[str]) -> list[str]:
        return [prompt for prompt in dict.fromkeys(prompts) if self.replies.get(prompt) is None]

    def _ask(self, prompts: Sequence[str]) -> None:
        try:
            if prompts:
                self.send(prompts, lambda i, reply: self.replies.keep(prompts[i], reply))
        except Unanswered as error:
            left = len(self._missing(prompts))
            raise InputError(
                f"the judge {self.name}: {error}; {len(prompts) - left} of {len(prompts)} replies are kept, and the "
                "same command goes on from there"
            ) from error


def verdict_of(reply: str) -> bool | None:
    found = VERDICT.match(reply)
    return None if found is None else found[1] == "A"


@dataclass(kw_only=True, eq=False)
class EndpointJudge(ChatEndpoint, Judge):
    """Behind an OpenAI-compatible endpoint. Options: those of ChatEndpoint, and `prompt`."""

    option = Judge.option

    def check(self) -> None:
        if not self.secret() and not self.replies:
            raise InputError(self.no_key())

    def cost_of(self, texts: int, characters_in: int) -> str:
        out = int(self.decoding.get("max_tokens", 1)) * CHARACTERS * texts
        return self.estimate(f"the judge {self.model} grades at most {texts:,} texts", characters_in, out)


@dataclass(kw_only=True, eq=False)
class LocalJudge(LocalChat, Judge):
    """A transformers model on this machine; it stays for the run. Options: those of LocalChat, and `prompt`."""

    def check(self) -> None:
        if sentence := self.missing_model(self.option):
            raise InputError(sentence)

    def cost_of(self, texts: int, characters_in: int) -> str:
        return f"the judge {self.path} grades at most {texts:,} texts, about {characters_in // CHARACTERS:,} tokens"

    def send(self, prompts: Sequence[str], keep: Callable[[int, str], None]) -> None:
        for i, reply in enumerate(self.replies_to(prompts)):
            keep(i, reply)


class Judges:
    """All judges of a run, by name; each grades the same texts."""

    def __init__(self, judges: Mapping[str, Judge] | None = None):
        if not all(isinstance(judge, Judge) for judge in (judges or {}).values()):
            raise InputError(
                f"eval.judges={judges!r}: not judges; choose them with eval/judges=[endpoint] (the files of "
                "conf/eval/judges)"
            )
        self.judges = dict(judges or {})
        for name, judge in self.judges.items():
            judge.name = name
        first = next(iter(self.judges.values()), None)
        if first is not None and first.share < 1:
            raise InputError(f"{first.option}.share={first.share:g}: the first judge grades every text; set it to 1.0")

    def __bool__(self) -> bool:
        return bool(self.judges)

    def announce(self, times: Mapping[Question, int], max_new: int) -> None:
        """Say what grading costs at most. `times`: how often each question is asked."""
        texts, answer = sum(times.values()), " " * min(MOST, max_new * CHARACTERS)
        for judge in self.judges.values():
            judge.check()
            judged = ((Judged.of(q, q.probe.answers[:1], answer), n) for q, n in times.items())
            characters = judge.share * sum(n * len(judge.filled(one)) for one, n in judged)
            log.info(judge.cost_of(ceil(judge.share * texts), int(characters)))

    def verdicts(self, judged: Sequence[Judged]) -> dict[Judged, dict[str, bool | None]]:
        by_judge = {name: judge.verdicts(judged) for name, judge in self.judges.items()}
        return {one: {name: said[one] for name, said in by_judge.items() if one in said} for one in judged}
