"""Independent edits side by side, and the same one after another (parallel=1): trainings, and jobs in `single`."""

from collections.abc import Sequence

import torch

from benchmarks.bench import Bench, Timing
from kedit.cases import Case
from kedit.editors import Job
from kedit.editors.finetune.per_edit import FineTune
from kedit.evaluation.evaluator import Evaluator
from kedit.loop.in_memory_journal import InMemoryJournal
from kedit.loop.runner import experiment
from kedit.loop.settings import single
from kedit.losses.cross_entropy import CrossEntropy
from kedit.losses.kdpo import KDPO

TIE = 1e-3  # nats: answers this near may change places


def side_by_side(bench: Bench, repeats: int, cases: Sequence[Case]) -> list[list[str]]:
    """A line for each training, and for each whole job: edits and answers, with and without fluency texts."""
    methods = {
        "FT-M, 25 steps": FineTune(loss=CrossEntropy(), lr=1e-4, steps=25, layers=[bench.layer]),
        "KDPO": FineTune(loss=KDPO(0.1), lr=1e-4, steps=8, cycles=3, layers=[bench.layer]),
    }
    lines = []
    for name, editor in methods.items():
        lines.append(_trainings(bench, editor, cases, repeats).line(f"{len(cases)} x {name}: training"))
        for tokens, what in ((0, "without fluency"), (100, "with fluency")):
            jobs = _jobs(bench, editor, cases, tokens, repeats)
            lines.append(jobs.line(f"{len(cases)} x {name}: whole job {what}"))
    return lines


def _trainings(bench: Bench, editor: FineTune, cases: Sequence[Case], repeats: int) -> Timing:
    lm, timing, edits = bench.lm, Timing(), [case.edits[0] for case in cases]

    def together() -> None:
        with lm.in_variants(len(edits)):
            editor.edit_side_by_side(lm, [Job(editor.fork(), [edit], i) for i, edit in enumerate(edits)])

    def one_by_one() -> None:
        for edit in edits:
            editor.edit(lm, [edit])
            lm.restore()

    for i in range(repeats + 1):
        mine, other = bench.timed(together), bench.timed(one_by_one)
        if i:  # the first warms up
            timing.add(mine, other)
    return timing


def _jobs(bench: Bench, editor: FineTune, cases: Sequence[Case], tokens: int, repeats: int) -> Timing:
    timing, found = Timing(), {}
    evaluator = Evaluator(fluency_tokens=tokens)

    def job(parallel: int) -> None:
        journal = InMemoryJournal()
        experiment(bench.lm, single(cases), editor, evaluator, journal=journal, parallel=parallel)
        bench.lm.restore()
        found[parallel] = [row for row in journal.rows if row["when"] == "test"]

    for i in range(repeats + 1):
        mine, other = bench.timed(lambda: job(len(cases))), bench.timed(lambda: job(1))
        timing.same &= _alike(found[len(cases)], found[1])
        if i:
            timing.add(mine, other)
    return timing


def _alike(some: Sequence[dict], others: Sequence[dict]) -> bool:
    pairs = [(a.get("nll"), b.get("nll")) for a, b in zip(some, others, strict=True)]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    one, other = torch.tensor(known).T
    return bool(torch.allclose(one, other, atol=TIE, rtol=TIE))
