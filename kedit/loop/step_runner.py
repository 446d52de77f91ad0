"""One step of a run, or the steps at the same place of several episodes: edits are made, questions asked and graded."""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import NamedTuple
from zlib import crc32

from transformers import set_seed

from kedit.cases import Question, condition_question, questions_of
from kedit.editors import Editor, Job, Outcome
from kedit.evaluation.answers import Answer
from kedit.evaluation.conditions import conditions_of_the_edited
from kedit.evaluation.evaluator import Evaluator, Row
from kedit.evaluation.measures import Measurement
from kedit.evaluation.step_trace import StepTrace
from kedit.lm import LM
from kedit.loop.settings import Step

log = logging.getLogger(__name__)

PART = 4096  # questions that are answered and graded together


@dataclass(frozen=True, eq=False)
class Turn:
    """A step that is to be made, with what will then be in its model. variant None: the model itself."""

    number: int
    step: Step
    edits: int
    cases: int
    editor: Editor
    variant: int | None = None

    @property
    def place(self) -> Row:
        return {"step": self.number, "edits_so_far": self.edits, "cases_so_far": self.cases}


@dataclass(eq=False)
class StepResult:
    """What came of a step: its line in steps.jsonl, its rows, what was heard during its edit, and what was asked by
    measures of the whole model, one by one."""

    record: Row
    rows: list[Row] = field(default_factory=list)
    traced: list[Row] = field(default_factory=list)
    items: list[Row] = field(default_factory=list)


class Asked(NamedTuple):
    """A question, with the turn and the moment at which it is asked ("edit": right after a case's own edit, "test")."""

    turn: int
    when: str
    question: Question


class StepRunner:
    """Makes steps with one model, editor and evaluator. `before`: the unedited model's answers."""

    def __init__(
        self,
        lm: LM,
        editor: Editor,
        evaluator: Evaluator,
        before: dict[Question, Answer],
        seed: int = 0,
        held_out: str = "",
    ):
        self.lm, self.editor, self.evaluator, self.before = lm, editor, evaluator, before
        self.seed, self.held_out = seed, held_out

    def most_side_by_side(self) -> int:
        """How many episodes memory holds side by side; 1 where edits are followed step by step, or cannot be made so,
        or where the whole model is measured after each of them."""
        measured = any(measure.each_restore for measure in self.evaluator.measures.values())
        if measured or self.evaluator.each_step or not self.editor.side_by_side:
            return 1
        return self.lm.room_for_variants(self.editor.variant_bytes(self.lm))

    def baseline(self, steps: Sequence[Step], fit_s: float) -> StepResult:
        """Step 0: the unedited model on everything that will be tested."""
        started = time.perf_counter()
        tested = list({case.id: case for step in steps for case in step.test}.values())
        asked = [q for case in tested for q in questions_of(case, self.evaluator.kinds)]
        graded = self.evaluator.grade_all(asked, [self.before[q] for q in asked], self.before)
        place = {"step": 0, "edits_so_far": 0, "cases_so_far": 0}
        record: Row = {**place, "cases": [], "tested": len(tested), "fit_s": round(fit_s, 3)}
        fit_report = dict(self.editor.fit_report())
        record |= {"learnt": fit_report} if fit_report else {}
        rows = [{**place, "when": "before", **row} for row in graded]
        measured = self._measured({**place, "when": "before"}, restored=False)
        record |= measured.numbers | _seconds(started, measured)
        return StepResult(record, rows + measured.rows, items=measured.items)

    def make(self, turns: Sequence[Turn]) -> list[StepResult]:
        """One turn, or several of different variants, side by side."""
        traces = [StepTrace(self.lm, self.evaluator, turn.step.edit, turn.place) for turn in turns]
        costs = self._edit(turns, traces[0])
        started = time.perf_counter()
        rows: list[list[Row]] = [[] for _ in turns]
        for part in question_batches(turns, self.evaluator):
            for i, row in self._score(turns, part):
                rows[i].append(row)
        results = []
        for turn, cost, own, trace in zip(turns, costs, rows, traces, strict=True):
            measured = self._after_test(turn)
            record = _record(turn) | cost | measured.numbers | _seconds(started, measured, len(turns))
            results.append(StepResult(record, own + measured.rows, trace.records, measured.items))
        return results

    def _score(self, turns: Sequence[Turn], part: Sequence[Asked]) -> Iterator[tuple[int, Row]]:
        """Rows of some questions, pooled, each with its turn."""
        variants = [turns[asked.turn].variant or 0 for asked in part]
        answers = iter(self.evaluator.answer(self.lm, [asked.question for asked in part], variants))
        for (turn, when), some in groupby(part, lambda asked: (asked.turn, asked.when)):
            asked = [one.question for one in some]
            graded = self.evaluator.grade_all(asked, [next(answers) for _ in asked], self.before)
            place = {**turns[turn].place, "when": when} | ({"T": turns[turn].step.T} if when == "test" else {})
            yield from ((turn, place | row) for row in graded)

    def _edit(self, turns: Sequence[Turn], trace: StepTrace) -> list[Row]:
        """Make the edits; one that fails numerically is undone. `trace` follows an edit that is made alone."""
        learnt = [turn.editor.state() for turn in turns]
        seeds = [partial(seed_step, self.seed, turn.number) for turn in turns]
        jobs = [Job(t.editor, edits_of(t.step), t.variant, seed) for t, seed in zip(turns, seeds, strict=True)]
        turns[0].editor.on_step = trace.start()
        started = time.perf_counter()
        for turn in turns:
            with self.lm.scope(turn.variant):
                self.lm.begin_edit()
        outcomes = self.editor.edit_side_by_side(self.lm, jobs) if len(jobs) > 1 else [jobs[0].alone(self.lm)]
        reports = [self._end_edit(*each) for each in zip(turns, outcomes, learnt, strict=True)]
        edit_s = (time.perf_counter() - started - trace.seconds) / len(turns)
        return [{"edit_s": round(edit_s, 4), **report} for report in reports]

    def _end_edit(self, turn: Turn, outcome: Outcome, learnt: Row) -> Row:
        with self.lm.scope(turn.variant):
            try:
                if isinstance(outcome, FloatingPointError):
                    raise outcome
                return {**outcome, **self.lm.end_edit(), "failed": 0}
            except FloatingPointError as error:
                cases = ", ".join(case.id for case in turn.step.edit)
                log.warning("an edit of %s failed (%s) and was undone", cases, error)
                self.lm.undo_edit()
                turn.editor.load_state(self.lm, learnt)
                return {"failed": 1}

    def _after_test(self, turn: Turn) -> Measurement:
        if not turn.step.test:
            return Measurement()
        return self._measured({**turn.place, "when": "test", "T": turn.step.T}, restored=turn.step.restore)

    def _measured(self, place: Row, *, restored: bool) -> Measurement:
        """The whole model, by the evaluator's measures."""
        started = time.perf_counter()
        found = self.evaluator.measure(self.lm, self.held_out, restored=restored)
        seconds = {"measures_s": round(time.perf_counter() - started, 3)} if found.rows else {}
        rows, items = ([place | one for one in some] for some in (found.rows, found.items))
        return Measurement(rows, found.numbers | seconds, items)


def _record(turn: Turn) -> Row:
    """What was edited and tested."""
    edited = {"cases": [case.id for case in turn.step.edit], "edits": len(edits_of(turn.step))}
    return {**turn.place, **edited, "tested": len(turn.step.test)}


def _seconds(started: float, measured: Measurement, turns: int = 1) -> Row:
    """Seconds of asking and grading, without the measures of the whole model; each of several turns has its share."""
    asking = time.perf_counter() - started - measured.numbers.get("measures_s", 0.0)
    return {"eval_s": round(asking / turns, 3)}


def seed_step(seed: int, step: int) -> None:
    """Seed Python, NumPy and torch for one step of a run."""
    set_seed(crc32(f"{seed}/{step}".encode()))


def edits_of(step: Step) -> list:
    return [edit for case in step.edit for edit in case.edits]


def question_batches(turns: Sequence[Turn], evaluator: Evaluator) -> Iterator[list[Asked]]:
    """What turns ask, in parts of some thousand questions: whole cases, so that of their answers only rows pile up."""
    part: list[Asked] = []
    for i, turn in enumerate(turns):
        moments = (("edit", turn.step.edit, evaluator.each_edit), ("test", turn.step.test, evaluator.kinds))
        for when, cases, kinds in moments:
            for case in cases:
                mine = questions_of(case, kinds)
                part += (Asked(i, when, question) for question in [*mine, *conditions_of_the_edited(mine)])
                if len(part) >= PART:
                    yield part
                    part = []
    if part:
        yield part


def times_asked(steps: Sequence[Step], evaluator: Evaluator) -> Counter[Question]:
    """How often a run will ask each question; the unedited model is asked once."""
    each = (q for step in steps for case in step.edit for q in questions_of(case, evaluator.each_edit))
    tests = (q for step in steps for case in step.test for q in questions_of(case, evaluator.kinds))
    asked = Counter([*each, *tests])
    return asked + Counter(dict.fromkeys(asked, 1))


def all_questions(steps: Sequence[Step], evaluator: Evaluator) -> list[Question]:
    """What a run will ask, each question once."""
    each = (q for step in steps for case in step.edit for q in questions_of(case, evaluator.each_edit))
    tests = (q for step in steps for case in step.test for q in questions_of(case, evaluator.kinds))
    traced = (q for step in steps for case in step.edit for q in questions_of(case, evaluator.each_step))
    asked = dict.fromkeys([*each, *tests, *traced])
    conditions = (condition_question(q, condition) for q in asked for condition in q.probe.conditions)
    return list(dict.fromkeys([*asked, *conditions]))
