"""Asking: the same call before and after editing, so that protocols cannot differ. See docs/metrics.md."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal
from zlib import crc32

from kedit.cases import Question
from kedit.common.errors import InputError
from kedit.evaluation.answers import Answer, Ask, room
from kedit.evaluation.easyedit_scoring import score_group
from kedit.evaluation.metrics import TEXT_KINDS, Scoring
from kedit.evaluation.strict import StrictProfile
from kedit.lm import LM, Route, Scored
from kedit.lm.text import Side

Aliases = Literal["first", "any"]
Template = Literal["off", "on_prompts", "on_all"]
RoutedBy = Literal["prompt", "prompt_and_answer", "edit"]


class Asking:
    """Puts questions to a model. The options are those of Evaluator."""

    scoring: Sequence[Scoring]
    aliases: Aliases
    easyedit_padding: Side | None
    chat_template: Template
    double_bos: bool
    routed_by: RoutedBy
    fluency_tokens: int
    fluency_top_k: int
    fluency_seed: int
    strict: StrictProfile | None

    def prepare(self, lm: LM, asked: Sequence[Question], touched: Sequence[str]) -> None:
        """Before the first answer: let `lm` compute once what edits of the `touched` parameters cannot change."""
        closed = [q for q in asked if q.probe.kind != "fluency"]
        asks = self._objects([Ask(q) for q in closed]) if self.easyedit_padding is None else []
        prompts = [route.prompt for route in self._routes(lm, asks)]
        lm.cache_lower_layers(touched, prompts, [ask.answer for ask in asks])

    def scored_texts(self, lm: LM, asked: Sequence[Question]) -> Iterator[tuple[Question, str, str]]:
        """(question, prompt as the unedited model reads it, answer) of everything that is scored."""
        for ask in self._objects([Ask(q) for q in asked if q.probe.kind != "fluency"]):
            yield ask.question, self._framed(lm, ask.question, ask.question.probe.prompt), ask.answer
        closed = [q for q in asked if q.probe.kind not in TEXT_KINDS]
        for q in closed if "strict" in self.scoring else ():
            if self.profile.asks(q):
                yield q, self.profile.framed(lm, q, q.probe.prompt), q.probe.answers[0]

    def answer(self, lm: LM, asked: Sequence[Question], variants: Sequence[int] = ()) -> list[Answer]:
        """One answer a question, in order; prompts are pooled over all questions. `variants`: of the model that each
        question goes to, where there are several (LM.in_variants)."""
        asks = [Ask(q, variant=v) for q, v in zip(asked, variants or [0] * len(asked), strict=True)]
        free = [i for i, q in enumerate(asked) if q.probe.kind == "fluency"]
        closed = [i for i, q in enumerate(asked) if q.probe.kind != "fluency"]
        found = dict(zip(free, self._write(lm, [asks[i] for i in free]), strict=True))
        found |= zip(closed, self._reply(lm, [asks[i] for i in closed]), strict=True)
        return [found[i] for i in range(len(asked))]

    def score_at_step(self, lm: LM, asked: Sequence[Question]) -> list[Scored]:
        """The first answer of each question, teacher-forced: what is asked after an optimiser step."""
        first = self._first([Ask(q) for q in asked])
        return lm.answer(self._routes(lm, first), [ask.answer for ask in first])

    def score_greedy_continuation(self, lm: LM, asked: Sequence[Question]) -> list[Scored]:
        """What the model itself says, greedily, to each question, as many tokens as the first answer has."""
        first = self._first([Ask(q) for q in asked])
        return lm.score_greedy_continuation(self._routes(lm, first), [ask.answer for ask in first])

    def _first(self, asks: Sequence[Ask]) -> list[Ask]:
        return [ask._replace(answer=ask.question.probe.answers[0]) for ask in asks]

    def _reply(self, lm: LM, asks: Sequence[Ask]) -> list[Answer]:
        scored = iter(self._score(lm, self._objects(asks)))
        answers = []
        for q in (ask.question for ask in asks):
            forced = tuple(next(scored) for _ in self._targets(q))
            answers.append(
                Answer(forced, info=forced[0].info, competing_answer=next(scored) if q.probe.competing_answer else None)
            )
        if "generate" in self.scoring:
            routes = self._routes(lm, self._first(asks))
            generated = lm.generate(routes, [room(a.question, found) for a, found in zip(asks, answers, strict=True)])
            answers = [replace(a, generated=w.text, info=w.info) for a, w in zip(answers, generated, strict=True)]
        return self._reply_strictly(lm, asks, answers) if "strict" in self.scoring else answers

    def _reply_strictly(self, lm: LM, asks: Sequence[Ask], answers: Sequence[Answer]) -> list[Answer]:
        """Add what a strict profile asks for, in a generation of its own."""
        profile, found = self.profile, list(answers)
        wanted = [i for i, ask in enumerate(asks) if profile.asks(ask.question)]
        chosen = self._first([asks[i] for i in wanted])
        asked = [ask.question for ask in chosen]
        routes = [
            replace(to, prompt=profile.framed(lm, question, to.prompt))
            for question, to in zip(asked, self._routed(lm, chosen), strict=True)
        ]
        for i, reply in zip(wanted, profile.ask(lm, asked, routes), strict=True):
            found[i] = replace(found[i], strict=reply)
        return found

    @property
    def profile(self) -> StrictProfile:
        """That of the scoring "strict"."""
        if self.strict is None:
            raise InputError("eval.scoring has strict, but eval.strict is null; choose a profile, e.g. eval=wild")
        return self.strict

    def _objects(self, asks: Sequence[Ask]) -> list[Ask]:
        """Every question with every object that is scored behind its prompt."""
        found = []
        for ask in asks:
            competing = ask.question.probe.competing_answer
            texts = self._targets(ask.question) + ((competing,) if competing else ())
            found += [ask._replace(answer=text) for text in texts]
        return found

    def _targets(self, question: Question) -> tuple[str, ...]:
        """The answers that count."""
        return question.probe.answers if self.aliases == "any" else question.probe.answers[:1]

    def _score(self, lm: LM, asks: Sequence[Ask]) -> list[Scored]:
        routes, texts = self._routes(lm, asks), [ask.answer for ask in asks]
        if self.easyedit_padding is None:
            return lm.answer(routes, texts)
        groups: dict[tuple[str, str, str, int], list[int]] = {}
        for i, (q, _, variant) in enumerate(asks):
            groups.setdefault((q.case, q.probe.kind, q.probe.group, variant), []).append(i)
        scored: dict[int, Scored] = {}
        for members in groups.values():
            group = [routes[i] for i in members], [texts[i] for i in members]
            scored |= zip(members, score_group(lm, *group, self.easyedit_padding), strict=True)
        return [scored[i] for i in range(len(asks))]

    def _write(self, lm: LM, asks: Sequence[Ask]) -> list[Answer]:
        """Free text for fluency: its length alone ends it, and what a memory gives to read is no part of it."""
        asked = [ask.question for ask in asks]
        prompts = [self._framed(lm, q, q.probe.prompt) for q in asked]
        generated = lm.generate(
            self._routes(lm, asks),
            [max(0, self.fluency_tokens - len(ids)) for ids in lm.text.prompts(prompts)],
            top_k=self.fluency_top_k,
            seeds=[crc32(f"{self.fluency_seed}/{q.case}/{q.index}".encode()) for q in asked],
            stop=False,
        )
        texts = [
            f"{prompt.rstrip()} {w.text.lstrip()}" if w.info else w.full
            for prompt, w in zip(prompts, generated, strict=True)
        ]
        return [Answer(generated=text, info=w.info) for text, w in zip(texts, generated, strict=True)]

    def _routes(self, lm: LM, asks: Sequence[Ask]) -> list[Route]:
        """What the model reads: the prompt, with what a memory has for it, and around that the chat template."""
        routes = self._routed(lm, asks)
        framed = [self._framed(lm, ask.question, to.prompt) for ask, to in zip(asks, routes, strict=True)]
        return [replace(to, prompt=prompt) for to, prompt in zip(routes, framed, strict=True)]

    def _routed(self, lm: LM, asks: Sequence[Ask]) -> list[Route]:
        """The prompt, with what a memory has for it."""
        keys = [self._key(ask.question, ask.answer) for ask in asks]
        return [*lm.routed([ask.question.probe.prompt for ask in asks], keys, [ask.variant for ask in asks])]

    def _key(self, question: Question, answer: str) -> str:
        if self.routed_by == "edit":
            return question.edit
        return f"{question.probe.prompt} {answer}" if self.routed_by == "prompt_and_answer" else question.probe.prompt

    def _framed(self, lm: LM, question: Question, prompt: str) -> str:
        if frame := question.probe.frame:
            prompt = f"{frame.before}{prompt}{frame.after}"
        plain = question.probe.kind == "locality" and self.chat_template == "on_prompts"
        return prompt if self.chat_template == "off" or plain else lm.text.chat(prompt, self.double_bos)
