"""Asking and grading: the same call before and after editing, so protocols cannot differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from zlib import crc32

from kedit import metrics
from kedit.cases import KINDS, Kind, Question
from kedit.errors import InputError
from kedit.lm import LM, Scored
from kedit.lm.easyedit import score_group
from kedit.lm.text import Side

Row = dict[str, Any]
Scoring = Literal["forced", "generate"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says to one question."""

    forced: tuple[Scored, ...] = ()  # teacher-forced on each answer that counts; none for fluency
    written: str | None = None  # free text: the continuation, or for fluency prompt and continuation
    info: Mapping[str, Any] = field(default_factory=dict)  # of the prompt's route


class Evaluator:
    """Ways of asking and of grading. Every quirk of a reference implementation is one switch, off by default.

    scoring             "forced": token match, exact match and NLL from one teacher-forced pass (METRICS §3);
    "generate":
                        does the free greedy continuation say the answer and stop?
    aliases             "first" answer counts, as in EasyEdit, or the best of "any" (METRICS §10.3) locality_reference
    "pre_model": agreement with the unedited model (METRICS §3.3); "ground_truth": with the answer easyedit_padding
    score each group in one padded batch as EasyEdit does: "left" (today), "right" (before November 2024)
    chat_template       "off", "on_prompts" (all but locality, as EasyEdit does) or "on_all"; `double_bos` as EasyEdit
    had it fluency_tokens      length of a fluency text, prompt included (METRICS §4); 0: no fluency fluency_top_k
    it is sampled from the k most probable tokens, seeded for each case each_edit           kinds that the loop also
    asks of every edit right after it
    """

    def __init__(
        self,
        *,
        scoring: Sequence[Scoring] = ("forced",),
        aliases: Literal["first", "any"] = "first",
        locality_reference: Literal["pre_model", "ground_truth"] = "pre_model",
        easyedit_padding: Side | None = None,
        chat_template: Literal["off", "on_prompts", "on_all"] = "off",
        double_bos: bool = False,
        fluency_tokens: int = 100,
        fluency_top_k: int = 5,
        fluency_seed: int = 42,
        each_edit: Sequence[Kind] = ("reliability",),
    ):
        _choice("eval.scoring", scoring, ("forced", "generate"))
        _choice("eval.each_edit", each_edit, KINDS)
        _choice("eval.aliases", [aliases], ("first", "any"))
        _choice("eval.locality_reference", [locality_reference], ("pre_model", "ground_truth"))
        _choice("eval.easyedit_padding", [easyedit_padding or "left"], ("left", "right"))
        _choice("eval.chat_template", [chat_template], ("off", "on_prompts", "on_all"))
        self.scoring, self.aliases, self.locality_reference = tuple(scoring), aliases, locality_reference
        self.easyedit_padding, self.chat_template, self.double_bos = easyedit_padding, chat_template, double_bos
        self.fluency_tokens, self.fluency_top_k, self.fluency_seed = fluency_tokens, fluency_top_k, fluency_seed
        self.each_edit = tuple(each_edit)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What a test asks."""
        return tuple(kind for kind in KINDS if kind != "fluency" or self.fluency_tokens)

    def answer_options(self) -> dict[str, Any]:
        """The options that change what a model answers, not how it is graded: with the question, the key of an
        answer."""
        names = (
            "scoring",
            "aliases",
            "easyedit_padding",
            "chat_template",
            "double_bos",
            "fluency_tokens",
            "fluency_top_k",
            "fluency_seed",
        )
        return {name: getattr(self, name) for name in names}

    # --- asking ------------------------------------------------------------------------------------------------------

    def answer(self, lm: LM, asked: Sequence[Question]) -> list[Answer]:
        """One answer a question, in order; prompts are pooled over all questions."""
        free = [q for q in asked if q.probe.kind == "fluency"]
        closed = [q for q in asked if q.probe.kind != "fluency"]
        found = dict(zip(map(id, free), self._write(lm, free), strict=True))
        found |= dict(zip(map(id, closed), self._reply(lm, closed), strict=True))
        return [found[id(q)] for q in asked]

    def _reply(self, lm: LM, asked: Sequence[Question]) -> list[Answer]:
        counted = [q.probe.answers if self.aliases == "any" else q.probe.answers[:1] for q in asked]
        prompts = [self._prompt(lm, q) for q in asked]
        flat = [
            (q, prompt, answer)
            for q, prompt, answers in zip(asked, prompts, counted, strict=True)
            for answer in answers
        ]
        scored = iter(self._score(lm, flat))
        forced = [tuple(next(scored) for _ in answers) for answers in counted]
        if "generate" not in self.scoring:
            return [Answer(f, info=f[0].info) for f in forced]
        room = [
            max(len(s.gold) for s in f) + 16 for f in forced
        ]  # the answer and some more: a model that goes on has not stopped
        written = lm.generate(prompts, room)
        return [Answer(f, w.text, w.info) for f, w in zip(forced, written, strict=True)]

    def _score(self, lm: LM, flat: Sequence[tuple[Question, str, str]]) -> list[Scored]:
        if self.easyedit_padding is None:
            return lm.answer([prompt for _, prompt, _ in flat], [answer for _, _, answer in flat])
        groups: dict[tuple[str, str, str], list[int]] = {}
        for i, (q, _, _) in enumerate(flat):
            groups.setdefault((q.case, q.probe.kind, q.probe.group), []).append(i)
        scored: dict[int, Scored] = {}
        for members in groups.values():
            texts = [flat[i][1] for i in members], [flat[i][2] for i in members]
            scored |= zip(members, score_group(lm, *texts, self.easyedit_padding), strict=True)
        return [scored[i] for i in range(len(flat))]

    def _write(self, lm: LM, asked: Sequence[Question]) -> list[Answer]:
        """Free text for fluency: its length alone stops it (METRICS §4.2)."""
        seeds = [crc32(f"{self.fluency_seed}/{q.case}/{q.index}".encode()) for q in asked]
        prompts = [self._prompt(lm, q) for q in asked]
        written = lm.generate(
            prompts, max_tokens=self.fluency_tokens, top_k=self.fluency_top_k, seeds=seeds, stop=False
        )
        return [Answer(written=w.full, info=w.info) for w in written]

    def _prompt(self, lm: LM, question: Question) -> str:
        templated = self.chat_template == "on_all" or (
            self.chat_template == "on_prompts" and question.probe.kind != "locality"
        )
        return lm.text.chat(question.probe.prompt, self.double_bos) if templated else question.probe.prompt

    # --- grading -----------------------------------------------------------------------------------------------------

    def grade(self, question: Question, after: Answer, before: Answer) -> list[Row]:
        """Rows of one question: one for each way of scoring. `before` is the unedited model's answer."""
        place = {
            "case": question.case,
            "kind": question.probe.kind,
            "group": question.probe.group,
            "probe": question.index,
        }
        route = {"route": dict(after.info)} if after.info else {}
        if question.probe.kind == "fluency":
            graded = [
                {
                    "scoring": "generate",
                    "entropy": round(metrics.ngram_entropy(after.written or ""), 6),
                    "generated": after.written,
                }
            ]
        else:
            graders = {"forced": self._grade_forced, "generate": self._grade_written}
            graded = [graders[scoring](question, after, before) for scoring in self.scoring]
        return [place | row | route for row in graded]

    def _grade_forced(self, question: Question, after: Answer, before: Answer) -> Row:
        rows = []
        for now, then in zip(after.forced, before.forced, strict=True):
            token = metrics.token_match(now.pred, then.pred if self._compares(question) else now.gold)
            nll = -sum(now.logprob) / len(now.logprob)
            texts = {"gold": now.gold_text, "pred": now.pred_text}
            rows.append(
                {
                    "scoring": "forced",
                    "n_tokens": len(now.gold),
                    "token": token,
                    "exact": int(token == 1),
                    "nll": round(nll, 6),
                }
                | texts
            )
        return max(rows, key=lambda row: row["token"])

    def _grade_written(self, question: Question, after: Answer, before: Answer) -> Row:
        wanted = question.probe.answers if self.aliases == "any" else question.probe.answers[:1]
        said = after.written or ""
        if self._compares(question):
            exact = metrics.normalise(said) == metrics.normalise(before.written or "")
        else:
            exact = metrics.exact_match(said, wanted)
        return {"scoring": "generate", "exact": int(exact), "gold": wanted[0], "generated": said}

    def _compares(self, question: Question) -> bool:
        """Is the unedited model's answer the reference?"""
        return question.probe.kind == "locality" and self.locality_reference == "pre_model"


def noise_floor(lm: LM, asked: Sequence[Question], sample: int = 100) -> float:
    """Share of answer tokens on which a model agrees with itself, asked one by one and in one batch: 1 in float32.

    Below float32 no locality can be measured more finely than this.
    """
    probes = [q.probe for q in asked if q.probe.answers][:sample]
    prompts, answers = [p.prompt for p in probes], [p.answers[0] for p in probes]
    pooled = lm.answer(prompts, answers)
    alone = [lm.answer([prompt], [answer])[0] for prompt, answer in zip(prompts, answers, strict=True)]
    matches = [metrics.token_match(a.pred, b.pred) for a, b in zip(pooled, alone, strict=True)]
    return sum(matches) / len(matches)


def _choice(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    wrong = [value for value in given if value not in known]
    if wrong or isinstance(given, str):
        raise InputError(f"{name}={wrong or given!r}: choose from {', '.join(known)}")
