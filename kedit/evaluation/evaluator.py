"""Asking and grading: the same call before and after editing, so protocols cannot differ. See docs/metrics.md."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args
from zlib import crc32

from kedit.cases import CONDITION, KINDS, KNOWEDIT, Kind, Question
from kedit.common.errors import InputError
from kedit.common.options import Count, CountOrNone, OneOrMore, Seed, Several
from kedit.evaluation.answers import Answer, Ask, room
from kedit.evaluation.conditions import uncounted_rows, unmet
from kedit.evaluation.consistency import Consistency
from kedit.evaluation.easyedit_scoring import score_group
from kedit.evaluation.measures import Measure, Measurement
from kedit.evaluation.measures.chosen import named_measures
from kedit.evaluation.metrics import TEXT_KINDS, Forced, Scoring, Written, grades
from kedit.lm import LM, Route, Scored
from kedit.lm.text import Side

Row = dict[str, Any]
Aliases = Literal["first", "any"]
Reference = Literal["pre_model", "ground_truth"]
Template = Literal["off", "on_prompts", "on_all"]
RoutedBy = Literal["prompt", "prompt_and_answer", "edit"]


class Evaluator:
    """Ways of asking and of grading. Every quirk of a reference implementation is one switch, off by default."""

    # what changes an answer, not how it is graded
    ASKING = ("scoring", "aliases", "chat_template", "double_bos", "fluency_tokens", "fluency_top_k", "fluency_seed")

    def __init__(
        self,
        *,
        # what a test asks, as far as the dataset has it
        kinds: OneOrMore[Kind] = KNOWEDIT,
        # forced: token match, exact match and NLL from one teacher-forced pass; generate: does the free greedy
        # continuation say the answer and stop?
        scoring: OneOrMore[Scoring] = ("forced",),
        # the first answer counts, as in EasyEdit, or the best of any
        aliases: Aliases = "first",
        # locality is agreement with the unedited model, or with the answer
        locality_reference: Reference = "pre_model",
        # score a group in one padded batch as EasyEdit does: left (since November 2024) or right (before)
        easyedit_padding: Side | None = None,
        # on_prompts: all but locality, as EasyEdit does; its text had two BOS
        chat_template: Template = "off",
        double_bos: bool = False,
        # what memory editors look a question up by: the prompt alone; with its answer, as RECIPE's code does; or, as
        # EasyEdit gives IKE each case's own edit, by that
        routed_by: RoutedBy = "prompt",
        # length of a fluency text, prompt included (0: no fluency), sampled from the k most probable tokens, seeded
        # for each case
        fluency_tokens: CountOrNone = 100,
        fluency_top_k: Count = 5,
        fluency_seed: Seed = 42,
        # reference texts that a case's fluency texts are compared with
        consistency: Consistency | None = None,
        # kinds that the loop also asks of every edit right after it
        each_edit: Several[Kind] = ("reliability",),
        # kinds whose loss is followed over the optimiser steps of every edit (kedit/evaluation/step_trace.py)
        each_step: Several[Kind] = (),
        # measures of the whole model, by their names; None: perplexity (kedit/evaluation/measures)
        measures: Mapping[str, Measure] | None = None,
    ):
        _check_kinds(kinds, scoring, each_edit, each_step)
        _known("aliases", [aliases], get_args(Aliases))
        _known("locality_reference", [locality_reference], get_args(Reference))
        _known("easyedit_padding", [easyedit_padding], (None, *get_args(Side)))
        _known("chat_template", [chat_template], get_args(Template))
        _known("routed_by", [routed_by], get_args(RoutedBy))
        self.scoring, self.aliases, self.locality_reference = tuple(scoring), aliases, locality_reference
        self.easyedit_padding, self.chat_template, self.double_bos = easyedit_padding, chat_template, double_bos
        self.routed_by = routed_by
        self.fluency_tokens, self.fluency_top_k, self.fluency_seed = fluency_tokens, fluency_top_k, fluency_seed
        self.consistency, self.each_edit, self.each_step = consistency, tuple(each_edit), tuple(each_step)
        self.columns = tuple(kinds)  # of a table: without fluency tokens, fluency is a column of dashes
        self.kinds = tuple(kind for kind in kinds if self.fluency_tokens or kind not in TEXT_KINDS)
        self.measures = named_measures(measures)

    # --- asking ------------------------------------------------------------------------------------------------------

    def prepare(self, lm: LM, asked: Sequence[Question], touched: Sequence[str]) -> None:
        """Before the first answer: let `lm` compute once what edits of the `touched` parameters cannot change."""
        closed = [q for q in asked if q.probe.kind != "fluency"]
        asks = self._objects([Ask(q) for q in closed]) if self.easyedit_padding is None else []
        prompts = [route.prompt for route in self._routes(lm, asks)]
        lm.cache_lower_layers(touched, prompts, [ask.answer for ask in asks])

    def scored_texts(self, lm: LM, asked: Sequence[Question]) -> Iterator[tuple[Question, str, str]]:
        """(question, prompt as the unedited model reads it, answer) of everything that is teacher-forced."""
        for ask in self._objects([Ask(q) for q in asked if q.probe.kind != "fluency"]):
            yield ask.question, self._framed(lm, ask.question, ask.question.probe.prompt), ask.answer

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
        if "generate" not in self.scoring:
            return answers
        routes = self._routes(lm, self._first(asks))
        generated = lm.generate(routes, [room(a.question, found) for a, found in zip(asks, answers, strict=True)])
        return [replace(a, generated=w.text, info=w.info) for a, w in zip(answers, generated, strict=True)]

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
        keys = [self._key(ask.question, ask.answer) for ask in asks]
        routes = lm.routed([ask.question.probe.prompt for ask in asks], keys, [ask.variant for ask in asks])
        framed = [self._framed(lm, ask.question, to.prompt) for ask, to in zip(asks, routes, strict=True)]
        return [replace(to, prompt=prompt) for to, prompt in zip(routes, framed, strict=True)]

    def _key(self, question: Question, answer: str) -> str:
        if self.routed_by == "edit":
            return question.edit
        return f"{question.probe.prompt} {answer}" if self.routed_by == "prompt_and_answer" else question.probe.prompt

    def _framed(self, lm: LM, question: Question, prompt: str) -> str:
        if frame := question.probe.frame:
            prompt = f"{frame.before}{prompt}{frame.after}"
        plain = question.probe.kind == "locality" and self.chat_template == "on_prompts"
        return prompt if self.chat_template == "off" or plain else lm.text.chat(prompt, self.double_bos)

    def measure(self, lm: LM, held_out: str, *, restored: bool = False) -> Measurement:
        """What the measures find in the model as it is. `restored`: it is restored right after this test."""
        wanted = [measure for measure in self.measures.values() if measure.each_restore or not restored]
        return sum((measure(lm, held_out) for measure in wanted), Measurement())

    # --- grading -----------------------------------------------------------------------------------------------------

    def grade_all(
        self, asked: Sequence[Question], answers: Sequence[Answer], before: Mapping[Question, Answer]
    ) -> list[Row]:
        """Rows of all questions, in order, then those of cases as a whole; a question that is asked for the sake of
        others has none. `before`: the unedited model's answers."""
        now = {q: answer for q, answer in zip(asked, answers, strict=True) if q.index == CONDITION}
        graded = []
        for q, answer in zip(asked, answers, strict=True):
            if q.index != CONDITION:
                by = unmet(self.grade, q, before, now)
                graded += uncounted_rows(q, self.scoring, by) if by else self.grade(q, answer, before[q])
        if self.consistency is None or "consistency" not in self.kinds:
            return graded
        return graded + self.consistency.rows(asked, [answer.generated for answer in answers])

    def grade(self, question: Question, after: Answer, before: Answer) -> list[Row]:
        """Rows of one question: one for each way of scoring. `before` is the unedited model's answer."""
        probe = question.probe
        place = {"case": question.case, "kind": probe.kind, "group": probe.group, "probe": question.index}
        place |= {"fold": probe.fold} if probe.fold != "mean" else {}
        route = {"route": dict(after.info)} if after.info else {}
        if probe.kind == "fluency":
            graded = [self._grade_text(after)]
        else:
            graders = {"forced": self._grade_forced, "generate": self._grade_written}
            graded = [graders[scoring](question, after, before) for scoring in self.scoring]
        return [place | row | route for row in graded]

    def _grade_text(self, after: Answer) -> Row:
        text = after.generated or ""
        return {"scoring": "generate"} | grades("generate", Written("fluency", text)) | {"generated": text}

    def _grade_forced(self, question: Question, after: Answer, before: Answer) -> Row:
        """Of the answer that counts most."""
        competing = None if after.competing_answer is None else after.competing_answer.logprob
        rows = []
        for now, then in zip(after.forced, before.forced, strict=True):
            reference = then.pred if self._compares(question) else now.gold
            scores = grades("forced", Forced(question.probe.kind, now.pred, reference, now.logprob, competing))
            texts = {"gold": now.gold_text, "pred": now.pred_text}
            rows.append({"scoring": "forced", "n_tokens": len(now.gold)} | scores | texts)
        return max(rows, key=lambda row: row["token"])

    def _grade_written(self, question: Question, after: Answer, before: Answer) -> Row:
        probe, targets = question.probe, self._targets(question)
        written = Written(
            probe.kind,
            after.generated or "",
            acceptable=targets,
            every=probe.every,
            contains=probe.frame is not None and probe.frame.contains,
            unedited=(before.generated or "") if self._compares(question) else None,
        )
        return {"scoring": "generate"} | grades("generate", written) | {"gold": targets[0], "generated": written.text}

    def _compares(self, question: Question) -> bool:
        """Is the unedited model's answer the reference?"""
        return question.probe.kind == "locality" and self.locality_reference == "pre_model"


def _check_kinds(
    kinds: Sequence[str], scoring: Sequence[str], each_edit: Sequence[str], each_step: Sequence[str]
) -> None:
    _known("kinds", kinds, KINDS)
    _known("scoring", scoring, get_args(Scoring))
    _known("each_edit", each_edit, [kind for kind in KINDS if kind != "consistency"])
    _known("each_step", each_step, [kind for kind in KINDS if kind not in TEXT_KINDS])
    if not kinds or not scoring:
        raise InputError(f"eval.kinds={list(kinds)}, eval.scoring={list(scoring)}: give at least one of each")
    if "consistency" in kinds and "fluency" not in kinds:
        raise InputError(f"eval.kinds={list(kinds)}: consistency compares the texts of fluency; add fluency")


def _known(name: str, given: Sequence[Any], known: Sequence[Any]) -> None:
    if isinstance(given, str) or any(value not in known for value in given):
        raise InputError(f"eval.{name}={given!r}: choose from {', '.join(str(value) for value in known)}")
