"""The loop: edit, test, restore, write. It has no branch on a method, dataset, model or metric."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any
from zlib import crc32

from transformers import set_seed

from kedit.cases import Case, Question, condition_question, questions_of
from kedit.common.progress import progress
from kedit.editors import Editor
from kedit.evaluation.baseline import baseline_answers
from kedit.evaluation.evaluator import Answer, Evaluator, Row
from kedit.evaluation.measures import Measurement
from kedit.evaluation.step_trace import StepTrace
from kedit.lm import LM
from kedit.loop.journal import InMemoryJournal
from kedit.loop.settings import Step
from kedit.loop.tracker import Tracker
from kedit.results.cell_files import BENCHMARKS
from kedit.results.scores import COLUMNS, mean_scores

log = logging.getLogger(__name__)

PART = 4096  # questions that are answered and graded together


def experiment(
    lm: LM,
    steps: Iterable[Step],
    editor: Editor,
    evaluator: Evaluator,
    *,
    seed: int = 0,
    train: Sequence[Case] = (),
    held_out: str = "",
    journal: InMemoryJournal | None = None,
    tracker: Tracker | None = None,
) -> list[Row]:
    """Run `steps` on an unedited `lm` and return all rows; with a Journal they are on disk, and a killed run continues.

    Step 0 is the unedited model: its rows are the floor. Randomness is seeded for each step from (seed, step). An
    edit that fails numerically is undone, marked `failed`, and the run goes on. The model is left as the last step
    left it.
    """
    lm.check_unedited("experiment")
    steps, journal, tracker = list(steps), journal or InMemoryJournal(), tracker or Tracker()
    asked = all_questions(steps, evaluator)
    evaluator.prepare(lm, asked, editor.edited_parameters(lm))
    runner = _Runner(lm, editor, evaluator, held_out, baseline_answers(lm, evaluator, asked))
    editor.scratch = journal.scratch
    seed_step(seed, 0)
    started = time.perf_counter()
    editor.fit(lm, train)
    fit_s = time.perf_counter() - started
    done = journal.resume(lm, editor)
    if done < 0:
        record, rows = runner.baseline(steps, fit_s)
        journal.trace(runner.items, BENCHMARKS)
        journal.write(record, rows)
        tracker.log(0, _metrics(record, rows))
        journal.commit(lm, editor, now=True)
    for number, step in progress(list(enumerate(steps, 1)), desc="edits", unit="step"):
        runner.count(step)
        if number > done:
            seed_step(seed, number)
            record, rows, traced = runner.step(number, step)
            journal.trace(traced)
            journal.trace(runner.items, BENCHMARKS)
            journal.write(record, rows)
            metrics = _metrics(record, rows)
            tracker.log(number, metrics)
            if step.test and not step.restore:
                scores = ", ".join(f"{k[5:]} {v:.1f}" for k, v in metrics.items() if k.startswith("test/"))
                log.info("after %d edits: %s", runner.edits, scores)
        if step.restore:
            lm.restore()
            editor.reset()
            runner.edits = runner.cases = 0
        if number > done:
            journal.commit(lm, editor, now=number == len(steps) or runner.is_checkpoint(step))
    return journal.rows


class _Runner:
    """Makes the record and the rows of one step."""

    def __init__(self, lm: LM, editor: Editor, evaluator: Evaluator, held_out: str, before: dict[Question, Answer]):
        self.lm, self.editor, self.evaluator, self.held_out, self.before = lm, editor, evaluator, held_out, before
        self.edits = self.cases = 0  # in the model, since the last restore
        self.items: list[Row] = []  # of measures, not written yet

    def count(self, step: Step) -> None:
        """The step's edits are about to be made."""
        self.items = []
        self.edits += sum(len(case.edits) for case in step.edit)
        self.cases += len(step.edit)

    def is_checkpoint(self, step: Step) -> bool:
        """Whether a sequence goes on after a test of all that it has edited so far."""
        return bool(step.test) and not step.restore and len(step.test) == self.cases

    def baseline(self, steps: Sequence[Step], fit_s: float) -> tuple[Row, list[Row]]:
        """The unedited model on everything that will be tested."""
        started = time.perf_counter()
        tested = list({case.id: case for step in steps for case in step.test}.values())
        asked = [q for case in tested for q in questions_of(case, self.evaluator.kinds)]
        graded = self.evaluator.grade_all(asked, [self.before[q] for q in asked], self.before)
        rows = [self._row_key(0, "before") | row for row in graded]
        record = {"step": 0, "edits_so_far": 0, "cases_so_far": 0, "cases": [], "tested": len(tested)}
        record["fit_s"] = round(fit_s, 3)
        fit_report = dict(self.editor.fit_report())
        record |= {"learnt": fit_report} if fit_report else {}
        measured = self._measured(0, {"when": "before"}, restored=False)
        return record | measured.numbers | _seconds(started, measured), rows + measured.rows

    def step(self, number: int, step: Step) -> tuple[Row, list[Row], list[Row]]:
        record: Row = {
            "step": number,
            "edits_so_far": self.edits,
            "cases_so_far": self.cases,
            "cases": [case.id for case in step.edit],
            "edits": sum(len(case.edits) for case in step.edit),
            "tested": len(step.test),
        }
        trace = StepTrace(self.lm, self.evaluator, step.edit, {"step": number, "edits_so_far": self.edits})
        record |= self._edit(step, trace)
        started = time.perf_counter()
        rows = [row for part in question_batches(step, self.evaluator) for row in self._score(number, step.T, part)]
        measured = Measurement()
        if step.test:
            measured = self._measured(number, {"when": "test", "T": step.T}, restored=step.restore)
        return record | measured.numbers | _seconds(started, measured), rows + measured.rows, trace.records

    def _score(self, number: int, T: int, part: Sequence[tuple[str, Question]]) -> Iterator[Row]:
        """Rows of some questions, pooled; each comes with the moment it is asked at."""
        answers = iter(self.evaluator.answer(self.lm, [question for _, question in part]))
        for when, group in groupby(part, lambda asked: asked[0]):
            asked = [question for _, question in group]
            graded = self.evaluator.grade_all(asked, [next(answers) for _ in asked], self.before)
            tested = {"T": T} if when == "test" else {}
            yield from (self._row_key(number, when) | tested | row for row in graded)

    def _edit(self, step: Step, trace: StepTrace) -> Row:
        """Apply the step's edits; on a numerical failure undo them."""
        edits = [edit for case in step.edit for edit in case.edits]
        learnt = self.editor.state()
        self.editor.on_step = trace.start()
        started = time.perf_counter()
        try:
            with self.lm.transaction() as change:
                cost = dict(self.editor.edit(self.lm, edits))
            failed = 0
        except FloatingPointError as error:
            log.warning("an edit of %s failed (%s) and was undone", ", ".join(case.id for case in step.edit), error)
            self.editor.load_state(self.lm, learnt)
            cost, failed = {}, 1
        edit_s = time.perf_counter() - started - trace.seconds
        return {"edit_s": round(edit_s, 4), **cost, **change, "failed": failed}

    def _measured(self, number: int, when: Row, *, restored: bool) -> Measurement:
        """The whole model, by the evaluator's measures."""
        started = time.perf_counter()
        found = self.evaluator.measure(self.lm, self.held_out, restored=restored)
        place = self._row_key(number, when["when"]) | when
        self.items += [place | item for item in found.items]
        seconds = {"measures_s": round(time.perf_counter() - started, 3)} if found.rows else {}
        return Measurement([place | row for row in found.rows], found.numbers | seconds)

    def _row_key(self, step: int, when: str) -> Row:
        return {"step": step, "edits_so_far": self.edits, "cases_so_far": self.cases, "when": when}


def _seconds(started: float, measured: Measurement) -> Row:
    """Of asking and grading, without the measures of the whole model."""
    return {"eval_s": round(time.perf_counter() - started - measured.numbers.get("measures_s", 0.0), 3)}


def seed_step(seed: int, step: int) -> None:
    """Seed Python, NumPy and torch for one step of a run."""
    set_seed(crc32(f"{seed}/{step}".encode()))


def question_batches(step: Step, evaluator: Evaluator) -> Iterator[list[tuple[str, Question]]]:
    """What a step asks, with the moment ("edit": right after a case's own edit, "test"), in parts of some thousand
    questions: whole cases, so that of their answers only rows pile up."""
    moments = (("edit", step.edit, evaluator.each_edit), ("test", step.test, evaluator.kinds))
    part: list[tuple[str, Question]] = []
    for when, cases, kinds in moments:
        for case in cases:
            part += ((when, question) for question in questions_of(case, kinds))
            if len(part) >= PART:
                yield part
                part = []
    if part:
        yield part


def all_questions(steps: Sequence[Step], evaluator: Evaluator) -> list[Question]:
    """What a run will ask, each question once."""
    each = (q for step in steps for case in step.edit for q in questions_of(case, evaluator.each_edit))
    tests = (q for step in steps for case in step.test for q in questions_of(case, evaluator.kinds))
    traced = (q for step in steps for case in step.edit for q in questions_of(case, evaluator.each_step))
    asked = dict.fromkeys([*each, *tests, *traced])
    conditions = (condition_question(q, condition) for q in asked for condition in q.probe.conditions)
    return list(dict.fromkeys([*asked, *conditions]))


def _metrics(record: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """What one step shows on a dashboard: the edit's cost, and scores as the table has them, by moment and kind."""
    numbers = {key: value for key, value in record.items() if isinstance(value, int | float) and key != "step"}
    for when in dict.fromkeys(row["when"] for row in rows):
        scores = mean_scores([row for row in rows if row["when"] == when])
        numbers |= {f"{when}/{COLUMNS[kind].replace(' ', '_')}": score for kind, score in scores.items()}
    return numbers
