"""Independent edits side by side: the same rows as one after another, whatever fails, stops or runs out of memory."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TESTS
from forked import Forked
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from kedit import world
from kedit.cases import BENCHMARK, Edit
from kedit.common.errors import InputError
from kedit.common.paths import ROOT
from kedit.editors import Editor, Job
from kedit.evaluation.evaluator import Evaluator
from kedit.evaluation.measures import Measure, Measurement, row
from kedit.lm import LM
from kedit.loop.episodes import GroupSizes, episodes
from kedit.loop.in_memory_journal import InMemoryJournal
from kedit.loop.runner import experiment
from kedit.loop.settings import Step, blocks, single
from kedit.loop.step_runner import StepRunner
from kedit.losses.cross_entropy import CrossEntropy

EDITORS = sorted(path.stem for path in (ROOT / "conf" / "editor").glob("*.yaml"))
CASES = 3
TIE = 1e-3  # nats: two answers this near may change places
COSTS = ("_s", "seconds")


def editor_named(name: str) -> Editor:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return instantiate(compose("config", [f"editor={name}"]).editor, _convert_="all")  # type: ignore[no-any-return]


def rows_of(
    lm: LM, editor: Editor, steps: Sequence[Any], parallel: Any, measures: Any = None, **more: Any
) -> InMemoryJournal:
    journal = InMemoryJournal()
    lm.restore()
    editor.reset()
    dataset = world.cases(edits=CASES, limit=CASES)
    evaluator = Evaluator(kinds=("reliability", "generality", "locality"), fluency_tokens=0, measures=measures)
    experiment(lm, steps, editor, evaluator, train=dataset.train, journal=journal, parallel=parallel, **more)
    lm.restore()
    return journal


def assert_same_rows(alone: InMemoryJournal, together: InMemoryJournal, near: float = TIE) -> None:
    assert len(alone.rows) == len(together.rows)
    for one, other in zip(alone.rows, together.rows, strict=True):
        numbers = {key for key, value in one.items() if isinstance(value, float)}
        assert {k: v for k, v in one.items() if k not in numbers} == {
            k: v for k, v in other.items() if k in one and k not in numbers
        }
        for key in numbers:
            assert other[key] == pytest.approx(one[key], abs=near, rel=near), key
    for one, other in zip(alone.steps, together.steps, strict=True):
        for key in one.keys() - {"weight_change", "perplexity", "loss"}:
            assert key.endswith(COSTS) or one[key] == other[key], key


SIDE_BY_SIDE = [name for name in EDITORS if "???" not in (ROOT / "conf" / "editor" / f"{name}.yaml").read_text("utf-8")]


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_an_editors_rows_do_not_depend_on_what_runs_beside(lm: LM, name: str) -> None:
    try:
        editor = editor_named(name)
    except Exception as error:  # a base for others, or a method that needs a file
        pytest.skip(f"is not built by itself: {type(error).__name__}")
    if not editor.side_by_side or editor.needs_train:
        pytest.skip("runs one by one, or is tested with what it learns from (tests/test_incontext.py)")
    steps = list(single(world.cases(edits=CASES, limit=CASES).cases, 1))
    # some gradients of queries and keys are rounding alone; the first steps of Adam make them as large as others
    near = 10 * TIE if getattr(editor, "parameters", None) == "block" else TIE
    assert_same_rows(rows_of(lm, editor, steps, 1), rows_of(lm, editor, steps, CASES), near)


def test_blocks_run_side_by_side_too(lm: LM) -> None:
    """The k-th edits of all blocks at once, the last block shorter."""
    steps = list(blocks(world.cases(edits=5, limit=5).cases, 2))
    alone, together = (rows_of(lm, editor_named("ft_m"), steps, parallel) for parallel in (1, 3))
    assert_same_rows(alone, together)
    assert [step["edits_so_far"] for step in together.steps] == [step["edits_so_far"] for step in alone.steps]


class Counts(Measure):
    """What edits have changed in the model when it is asked."""

    def __init__(self, each_restore: bool):
        self.each_restore = each_restore

    def __call__(self, lm: LM, held_out: str) -> Measurement:
        assert lm.variants is None
        return Measurement([row("changed", "count", "changed", float(len(lm.changed)))], items=[{"item": 0}])


@pytest.mark.parametrize("each_restore", [False, True])
def test_the_whole_model_is_measured_for_one_model_at_a_time(lm: LM, each_restore: bool) -> None:
    """At each test that a restore follows only if that is asked for, and then those edits are made one by one; a test
    inside an episode is measured always."""
    cases = world.cases(edits=6, limit=6).cases
    inner = [Step([cases[1]], [cases[1]], T=1), Step([cases[2]], cases[1:3], restore=True, T=2)]
    steps = [*single(cases[:1], 1), *inner, *single(cases[3:], 1)]
    measures = {"changed": Counts(each_restore)}
    editor = editor_named("ft_m")
    editor.steps = 1  # type: ignore[attr-defined]
    runner = StepRunner(lm, editor, Evaluator(measures=measures), {})
    assert runner.most_side_by_side() == 1 if each_restore else runner.most_side_by_side() > 1
    alone, together = (rows_of(lm, editor, steps, parallel, measures=measures) for parallel in (1, 3))
    assert_same_rows(alone, together)
    measured = {r["step"]: r["value"] > 0 for r in together.rows if r["kind"] == BENCHMARK}
    assert measured == {0: False} | dict.fromkeys(range(1, 7) if each_restore else [2], True)
    assert [step["edits"] for step in together.steps[1:]] == [1] * 6


class FailsOnce(CrossEntropy):
    """Not finite for the edit with this prompt."""

    def __init__(self, prompt: str):
        super().__init__()
        self.prompt = prompt

    def __call__(self, view: Any, logits: Any) -> Any:
        bad = torch.tensor([torch.nan if fact.prompt == self.prompt else 0.0 for fact in view.facts])
        return super().__call__(view, logits) + bad


def test_a_failed_edit_leaves_the_others_of_its_group_untouched(lm: LM) -> None:
    cases = world.cases(edits=CASES, limit=CASES).cases
    steps, editor = list(single(cases, 1)), editor_named("ft_m")
    editor.loss = FailsOnce(cases[1].edits[0].prompt)  # type: ignore[attr-defined]
    alone, together = (rows_of(lm, editor, steps, parallel) for parallel in (1, CASES))
    assert [step.get("failed") for step in together.steps] == [None, 0, 1, 0]
    assert_same_rows(alone, together)


class NeedsMemory(Editor):
    """Edits nothing; of more than `most` at once runs out of memory."""

    groups: list[int]
    most: int = 2

    def edit(self, lm: LM, edits: Sequence[Edit]) -> dict[str, Any]:
        self.groups.append(1)
        return {}

    def edit_side_by_side(self, lm: LM, jobs: Sequence[Job]) -> list[Any]:
        if len(jobs) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.groups.append(len(jobs))
        return [{} for _ in jobs]


def test_a_group_that_does_not_fit_is_halved_and_that_is_kept(lm: LM) -> None:
    editor = NeedsMemory()
    editor.groups = []
    steps = list(single(world.cases(edits=5, limit=5).cases, 1))
    journal = rows_of(lm, editor, steps, 5)
    assert editor.groups == [2, 2, 1]
    assert journal.group_sizes == {1: 2}
    assert [step["step"] for step in journal.steps] == [0, 1, 2, 3, 4, 5]


def test_an_episode_whose_group_did_not_fit_counts_its_edits_once_when_it_runs_alone(lm: LM) -> None:
    editor = NeedsMemory()
    editor.groups, editor.most = [], 1
    journal = rows_of(lm, editor, list(single(world.cases(edits=3, limit=3).cases, 1)), 3)
    assert editor.groups == [1, 1, 1]
    assert [(step["edits_so_far"], step["cases_so_far"]) for step in journal.steps[1:]] == [(1, 1)] * 3


def test_auto_runs_the_first_alone_and_then_what_a_kill_may_lose() -> None:
    journal = InMemoryJournal()
    waiting = episodes(single(world.cases(edits=9, limit=9).cases, 1))
    sizes = GroupSizes("auto", 8, journal)
    first = sizes.group(waiting, 0)
    assert len(first) == 1
    sizes.took(journal.every_s / 4.5, first)
    assert len(sizes.group(waiting[1:], 0)) == 4
    continued = GroupSizes("auto", 8, journal)  # the same groups, though memory or speed may be others now
    assert len(continued.group(waiting[1:], 1)) == 4
    with pytest.raises(InputError, match="parallel=0"):
        GroupSizes(0, 8, journal)


def test_killed_inside_a_group_it_continues_to_the_same_rows(tmp_path: Path) -> None:
    """-9 while a group is written; what it had written is dropped, and it is made again."""

    def run(folder: str, *killed: object) -> Path:
        arguments = ["tracker=none", "setting=single", "dataset.limit=8", "parallel=3", "commit_every_s=0"]
        program = str(TESTS / "killed.py") if killed else "kedit.run"
        env = {**os.environ, "KEDIT_RUNS": str(tmp_path / folder)}
        given = [*map(str, killed), *arguments, "eval.fluency_tokens=0"]
        process = Forked(program, given, env=env, cwd=tmp_path, says=tmp_path / "said")
        process.wait()
        assert process.returncode == (-signal.SIGKILL if killed else 0), process.communicate()
        return next(path.parent for path in (tmp_path / folder).rglob("meta.json"))

    straight = run("straight")
    run("killed", "rows", 6)
    killed = run("killed")
    assert (straight / "rows.jsonl").read_text("utf-8") == (killed / "rows.jsonl").read_text("utf-8")
    steps = [json.loads(line)["step"] for line in (killed / "steps.jsonl").read_text("utf-8").splitlines()]
    assert steps == list(range(9))
