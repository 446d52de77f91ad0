"""The loop: edit, test, restore, write. It has no branch on a method, dataset, model or metric."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kedit.cases import Case
from kedit.common.progress import progress
from kedit.editors import Editor
from kedit.evaluation.baseline import baseline_answers
from kedit.evaluation.evaluator import Evaluator, Row
from kedit.lm import LM
from kedit.lm.batching import unless_out_of_memory
from kedit.loop.episodes import Episode, GroupSizes, Parallel, episodes
from kedit.loop.in_memory_journal import InMemoryJournal
from kedit.loop.settings import Step
from kedit.loop.step_runner import StepResult, StepRunner, Turn, all_questions, seed_step
from kedit.loop.tracker import EDITS, Tracker
from kedit.results.cell_files import BENCHMARKS
from kedit.results.columns import COLUMNS
from kedit.results.scores import mean_scores

log = logging.getLogger(__name__)


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
    parallel: Parallel = 1,
) -> list[Row]:
    """Run `steps` on an unedited `lm` and return all rows; with a Journal they are on disk, and a killed run continues.

    Step 0 is the unedited model: its rows are the floor. Randomness is seeded for each step from (seed, step). An
    edit that fails numerically is undone, marked `failed`, and the run goes on. `parallel`: how many episodes (what
    lies between two restores) run side by side; it changes no row but by rounding. The model is left as the last step
    left it.
    """
    lm.check_unedited("experiment")
    steps, journal, tracker = list(steps), journal or InMemoryJournal(), tracker or Tracker()
    asked = all_questions(steps, evaluator)
    evaluator.prepare(lm, asked, editor.edited_parameters(lm))
    runner = StepRunner(lm, editor, evaluator, baseline_answers(lm, evaluator, asked), seed, held_out)
    editor.scratch, editor.on_training = journal.scratch, tracker.training
    seed_step(seed, 0)
    started = time.perf_counter()
    with journal.fitting():
        editor.fit(lm, train)
    fit_s = time.perf_counter() - started
    done = journal.resume(lm, editor)
    run = Run(lm, editor, runner, journal, tracker, len(steps))
    if done < 0:
        run.write(runner.baseline(steps, fit_s))
        journal.commit(lm, editor, now=True)
    sizes = GroupSizes(parallel, runner.most_side_by_side(), journal)
    waiting = [episode for episode in episodes(steps) if episode.last > done]
    with progress(total=len(steps), initial=max(done, 0), desc="edits", unit="step") as bar:
        while waiting:
            group = sizes.group(waiting, done)
            started = time.perf_counter()
            if len(group) == 1:
                run.alone(group[0], done, bar.update)
            elif not run.side_by_side(group, bar.update):
                sizes.halve(group)
                continue
            sizes.took(time.perf_counter() - started, group)
            waiting = waiting[len(group) :]
    return journal.rows


class Run:
    """Makes the steps of episodes and writes what came of them."""

    def __init__(
        self, lm: LM, editor: Editor, runner: StepRunner, journal: InMemoryJournal, tracker: Tracker, last: int
    ):
        self.lm, self.editor, self.runner = lm, editor, runner
        self.journal, self.tracker, self.last = journal, tracker, last
        self.edits = sum(map(edits_of, journal.steps))  # before a kill, too

    def alone(self, episode: Episode, done: int, progressed: Any) -> None:
        """One episode, from the step after `done` on; each step is written when it is made."""
        episode.begin()
        for number, step in episode.steps:
            episode.count(step)
            if number <= done:
                continue
            [result] = self.runner.make([Turn(number, step, episode.edits, episode.cases, self.editor)])
            self.write(result)
            progressed()
            if step.test and not step.restore:
                scores = ", ".join(f"{k[5:]} {v:.1f}" for k, v in metrics(result).items() if k.startswith("test/"))
                log.info("after %d edits: %s", episode.edits, scores)
            if step.restore:
                self.lm.restore()
                self.editor.reset()
            # a sequence goes on after a test of all that it has edited so far
            is_checkpoint = (
                bool(step.test) and not step.restore and sum(case.edited for case in step.test) == episode.cases
            )
            self.journal.commit(self.lm, self.editor, now=number == self.last or is_checkpoint)

    def side_by_side(self, group: Sequence[Episode], progressed: Any) -> bool:
        """Several episodes at once, each in its own variant of the model; their steps are written at the end, in order.
        False if memory did not suffice: nothing was written."""
        with self.journal.unfinished_group(self.lm, self.editor):
            results = unless_out_of_memory(lambda: self._group(group))
        if results is None:
            return False
        for result in results:
            self.write(result)
        progressed(len(results))
        self.journal.commit(self.lm, self.editor, now=group[-1].last == self.last)
        return True

    def _group(self, group: Sequence[Episode]) -> list[StepResult]:
        made: list[StepResult] = []
        for episode in group:
            episode.begin()
        with self.lm.in_variants(len(group)):
            forks = [self.editor.fork() for _ in group]
            for k in range(max(len(episode.steps) for episode in group)):
                turns = []
                for variant, episode in enumerate(group):
                    if k < len(episode.steps):
                        number, step = episode.steps[k]
                        episode.count(step)
                        turns.append(Turn(number, step, episode.edits, episode.cases, forks[variant], variant))
                made += self.runner.make(turns)
        return sorted(made, key=lambda result: result.record["step"])

    def write(self, result: StepResult) -> None:
        self.journal.trace(result.traced)
        self.journal.trace(result.items, BENCHMARKS)
        self.journal.write(result.record, result.rows)
        self.edits += edits_of(result.record)
        self.tracker.log(result.record["step"], metrics(result) | {EDITS: self.edits})


def edits_of(step: Mapping[str, Any]) -> int:
    """How many edits a step made. Cases had one each before steps said so."""
    return int(step.get("edits", len(step.get("cases", ()))))


def metrics(result: StepResult) -> dict[str, Any]:
    """What one step shows on a dashboard: the edit's cost, and scores as the table has them, by moment and kind."""
    numbers = {key: value for key, value in result.record.items() if isinstance(value, int | float) and key != "step"}
    for when in dict.fromkeys(row["when"] for row in result.rows):
        scores = mean_scores([row for row in result.rows if row["when"] == when])
        numbers |= {f"{when}/{COLUMNS[kind].replace(' ', '_')}": score for kind, score in scores.items()}
    return numbers
