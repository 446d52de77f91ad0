"""What must not grow: the cost of the 500th edit, of the 10 000th case, of a pass that was made before, of starting."""

import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks.memory import kilobytes
from benchmarks.shapes import SHAPES, build, zsre
from kedit import world
from kedit.cases import Case, Edit, questions_of
from kedit.data import knowedit
from kedit.data import load as load_cases
from kedit.editors import Editor
from kedit.editors.finetune.per_edit import FineTune
from kedit.evaluation.baseline import baseline_answers
from kedit.evaluation.evaluator import Evaluator
from kedit.lm import LM, load
from kedit.lm.loading import identity
from kedit.loop.journal import Journal
from kedit.loop.runner import experiment
from kedit.loop.settings import Step, sequential
from kedit.loop.tracker import Tracker
from kedit.losses.cross_entropy import CrossEntropy

LLAMA = "llama 16x512, 8k"


class Clock(Tracker):
    """CPU seconds at each step: edit, its score, rows on disk, all of it."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def log(self, step: int, metrics: object) -> None:
        self.at.append(time.process_time())


def sequence(edits: int = 500) -> list[str]:
    """FT-M on the embedded world, as a run does it."""
    lm, clock = world.load(), Clock()
    editor = FineTune(loss=CrossEntropy(), lr=1e-3, steps=25, layers=[lm.anatomy.layer(21 / 32)])
    steps = list(sequential(world.cases(edits=edits).cases, edits))
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "cell", "") as journal:
        experiment(lm, steps, editor, Evaluator(fluency_tokens=0), journal=journal, tracker=clock)
    taken = [b - a for a, b in pairwise(clock.at[:-1])]  # the last step also tests
    first, last = statistics.median(taken[:50]), statistics.median(taken[-50:])
    return [f"{edits} sequential edits: CPU-seconds of one of the last 50 / of the first 50", f"{last / first:.2f}"]


class Nothing(Editor):
    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        return {}


def many_cases(path: str, sizes: Sequence[int] = (2500, 5000, 10_000)) -> list[list[str]]:
    """A run that tests so many cases, made of the file's by numbering their prompts, and edits none."""
    lm, evaluator = world.load(), Evaluator(fluency_tokens=0)
    cases, lines = load_cases(knowedit.parse, path=path).cases[:500], []
    for size in sizes:
        steps = [Step((), [numbered(cases[i % len(cases)], i) for i in range(size)])]
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        held = kilobytes("VmRSS")
        with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "cell", "") as journal:
            started = time.process_time()
            experiment(lm, steps, Nothing(), evaluator, journal=journal)
            seconds = time.process_time() - started
        line = f"{1000 * seconds / size:.1f} ms a case; peak {(kilobytes('VmHWM') - held) / 1024:.0f} MB above before"
        lines.append([f"{size} cases before and after", line])
    return lines


def numbered(case: Case, i: int) -> Case:
    """The same questions in other words."""
    return replace(case, probes=tuple(replace(p, prompt=f"({i}) {p.prompt}") for p in case.probes))


def cached(path: str, rows: int) -> list[str]:
    """The pass before editing, made a second time by another process's model: identified, and read from the disk."""
    asked = zsre(path, rows)
    cases = load_cases(knowedit.parse, path=path).cases[:rows]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KEDIT_CACHE"] = f"{folder}/cache"
        build(SHAPES[LLAMA], asked.tokenizer, "cpu", torch.float32).save(folder)
        first, second = (answered(folder, cases) for _ in range(2))
        del os.environ["KEDIT_CACHE"]
    return ["cached pass before editing / the first, identification included", f"{second / first:.3f}"]


def answered(folder: str, cases: Sequence[Case]) -> float:
    """CPU seconds of saying which model it is and of its pass before editing."""
    evaluator, lm = Evaluator(fluency_tokens=0), load(folder)
    asked = [q for case in cases for q in questions_of(case, evaluator.kinds)]
    return cpu(lambda: (identity(folder, lm.model.config), baseline_answers(lm, evaluator, asked)))


def cpu(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def start(*command: str) -> list[str]:
    """CPU seconds and peak memory of a command, the best of five; a process of its own counts them."""
    count = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True); "
    count += "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime, used.ru_maxrss)"
    runs = []
    for _ in range(5):
        said = subprocess.run([sys.executable, "-c", count, *command], capture_output=True, text=True, check=True)
        runs.append(tuple(map(float, said.stdout.split())))
    seconds, kilobytes = min(runs)
    return [" ".join(command[1:]), f"{seconds:.1f} s, {kilobytes / 1024:.0f} MB"]


def long(path: str, rows: int) -> list[list[str]]:
    return [
        start(sys.executable, "-c", "import kedit.run"),
        start(sys.executable, "-m", "kedit.run", "--help"),
        sequence(),
        cached(path, rows),
        *many_cases(path),
    ]
