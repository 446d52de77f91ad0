"""The evaluator: its options, and grading; the same call before and after editing. See docs/metrics.md."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from kedit.cases import CONDITION, KINDS, KNOWEDIT, Kind, Question
from kedit.common.errors import InputError
from kedit.common.options import Count, CountOrNone, OneOrMore, Seed, Several
from kedit.evaluation.answers import Answer
from kedit.evaluation.asking import Aliases, Asking, RoutedBy, Template
from kedit.evaluation.conditions import uncounted_rows, unmet
from kedit.evaluation.consistency import Consistency
from kedit.evaluation.judges import Judge, Judged, Judges, Verdicts
from kedit.evaluation.measures import Measure, Measurement
from kedit.evaluation.measures.chosen import named_measures
from kedit.evaluation.metrics import TEXT_KINDS, Forced, Scoring, Written, grades
from kedit.evaluation.strict import StrictProfile
from kedit.lm import LM
from kedit.lm.text import Side

Row = dict[str, Any]
Reference = Literal["pre_model", "ground_truth"]


class Evaluator(Asking):
    """Ways of asking and of grading. Every quirk of a reference implementation is one switch, off by default."""

    # what changes an answer, not how it is graded
    ASKING = ("scoring", "aliases", "chat_template", "double_bos", "fluency_tokens", "fluency_top_k", "fluency_seed")

    def __init__(
        self,
        *,
        # what a test asks, as far as the dataset has it
        kinds: OneOrMore[Kind] = KNOWEDIT,
        # forced: token match, exact match and NLL from one teacher-forced pass; generate: does the free greedy
        # continuation say the answer and stop? strict: is what a profile (`strict`) asks for the answer?
        scoring: OneOrMore[Scoring] = ("forced",),
        # the first answer counts, as in EasyEdit, or the best of any
        aliases: Aliases = "first",
        # locality is agreement with the unedited model, or with the answer
        locality_reference: Reference = "pre_model",
        # score a group in one padded batch as EasyEdit does: left (since November 2024) or right (before)
        easyedit_padding: Side | None = None,
        chat_template: Template = "off",  # on_prompts: all but locality, as EasyEdit does; its text had two BOS
        double_bos: bool = False,
        # what memories look up: the prompt; with its answer, as RECIPE's code does; each case's edit, as EasyEdit's IKE
        routed_by: RoutedBy = "prompt",
        # length of a fluency text, prompt included (0: none), sampled from the k likeliest tokens, seeded for each case
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
        # how the scoring "strict" asks and grades (kedit/evaluation/strict.py), and who grades it besides exact match:
        # the first judge's verdict is the one that tables show
        strict: StrictProfile | None = None,
        judges: Mapping[str, Judge] | None = None,
    ):
        _check_kinds(kinds, scoring, each_edit, each_step)
        _check_choices(aliases, locality_reference, easyedit_padding, chat_template, routed_by)
        self.scoring, self.aliases, self.locality_reference = tuple(scoring), aliases, locality_reference
        self.easyedit_padding, self.chat_template, self.double_bos = easyedit_padding, chat_template, double_bos
        self.routed_by, self.strict, self.judges = routed_by, strict, Judges(judges)
        self.fluency_tokens, self.fluency_top_k, self.fluency_seed = fluency_tokens, fluency_top_k, fluency_seed
        self.consistency, self.each_edit, self.each_step = consistency, tuple(each_edit), tuple(each_step)
        self.columns = tuple(kinds)  # a table's: without fluency tokens, fluency is a column of dashes
        self.kinds = tuple(kind for kind in kinds if self.fluency_tokens or kind not in TEXT_KINDS)
        self.measures = named_measures(measures)
        if judges and "strict" not in scoring:
            said = "judges grade strict answers; choose a profile too, e.g. eval=wild"
            raise InputError(f"eval/judges={list(judges)}: {said}")
        if "strict" in scoring:
            _ = self.profile

    def announce(self, times: Mapping[Question, int]) -> None:
        """Before a model is loaded: say what judges will cost. `times`: how often each question will be asked. Raises
        InputError if a judge cannot be asked, or costs more than it may."""
        if self.judges and self.strict is not None:
            strict = self.strict
            asked = {q: n for q, n in times.items() if q.probe.kind not in TEXT_KINDS and strict.asks(q)}
            self.judges.announce(asked, strict.max_new)

    def measure(self, lm: LM, held_out: str, *, restored: bool = False) -> Measurement:
        """What the measures find in the model as it is. `restored`: it is restored right after this test."""
        wanted = [measure for measure in self.measures.values() if measure.each_restore or not restored]
        return sum((measure(lm, held_out) for measure in wanted), Measurement())

    # --- grading -----------------------------------------------------------------------------------------------------

    def grade_all(
        self, asked: Sequence[Question], answers: Sequence[Answer], before: Mapping[Question, Answer]
    ) -> list[Row]:
        """Rows of all questions, in order, then those of cases as a whole; a question that serves as a condition of
        others has none. `before`: the unedited model's answers."""
        now = {q: answer for q, answer in zip(asked, answers, strict=True) if q.index == CONDITION}
        pairs = [(q, answer) for q, answer in zip(asked, answers, strict=True) if q.index != CONDITION]
        kept_out = {q: unmet(self.grade, q, before, now) for q, _ in pairs}
        verdicts = self._verdicts([(q, answer) for q, answer in pairs if not kept_out[q]])
        graded = []
        for q, answer in pairs:
            by = kept_out[q]
            graded += uncounted_rows(q, self.scoring, by) if by else self.grade(q, answer, before[q], verdicts)
        if self.consistency is None or "consistency" not in self.kinds:
            return graded
        return graded + self.consistency.rows(asked, [answer.generated for answer in answers])

    def _verdicts(self, pairs: Sequence[tuple[Question, Answer]]) -> Verdicts:
        """What each judge says of each strict answer; all of them are judged together."""
        judged = [Judged.of(q, self._targets(q), a.strict.text) for q, a in pairs if a.strict is not None]
        return self.judges.verdicts(judged) if self.judges else {}

    def grade(self, question: Question, after: Answer, before: Answer, verdicts: Verdicts | None = None) -> list[Row]:
        """Rows of one question: one for each way of scoring. `before` is the unedited model's answer."""
        probe = question.probe
        place = {"case": question.case, "kind": probe.kind, "group": probe.group, "probe": question.index}
        place |= {"fold": probe.fold} if probe.fold != "mean" else {}
        route = {"route": dict(after.info)} if after.info else {}
        if probe.kind == "fluency":
            graded = [self._grade_text(after)]
        else:
            graders = {"forced": self._grade_forced, "generate": self._grade_written}
            ways = [scoring for scoring in self.scoring if scoring in graders]
            graded = [graders[scoring](question, after, before) for scoring in ways]
            graded += self._grade_strictly(question, after, before, verdicts or {})
        return [place | row | route for row in graded]

    def _grade_text(self, after: Answer) -> Row:
        text = after.generated or ""
        return {"scoring": "generate"} | grades("generate", Written("fluency", text)) | {"generated": text}

    def _grade_forced(self, question: Question, after: Answer, before: Answer) -> Row:
        """Grades the answer that counts most."""
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

    def _grade_strictly(self, question: Question, after: Answer, before: Answer, verdicts: Verdicts) -> list[Row]:
        """No row if it was not asked so."""
        if self.strict is None or after.strict is None or before.strict is None:
            return []
        targets = self._targets(question)
        said = verdicts.get(Judged.of(question, targets, after.strict.text), {})
        return [self.strict.row(question, targets, after.strict, before.strict, said)]

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


def _check_choices(
    aliases: str, locality_reference: str, easyedit_padding: str | None, chat_template: str, routed_by: str
) -> None:
    _known("aliases", [aliases], get_args(Aliases))
    _known("locality_reference", [locality_reference], get_args(Reference))
    _known("easyedit_padding", [easyedit_padding], (None, *get_args(Side)))
    _known("chat_template", [chat_template], get_args(Template))
    _known("routed_by", [routed_by], get_args(RoutedBy))


def _known(name: str, given: Sequence[Any], known: Sequence[Any]) -> None:
    if isinstance(given, str) or any(value not in known for value in given):
        raise InputError(f"eval.{name}={given!r}: choose from {', '.join(str(value) for value in known)}")
