"""The loop: what is asked when, failed edits, seeds."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from kedit import world
from kedit.cases import KINDS, Case, Edit, Probe
from kedit.editors import Editor
from kedit.editors.finetune.per_edit import FineTune
from kedit.evaluation.evaluator import Evaluator
from kedit.lm import LM
from kedit.loop.in_memory_journal import InMemoryJournal
from kedit.loop.runner import experiment
from kedit.loop.settings import Step, blocks, incremental, mass, sequential, single
from kedit.losses.cross_entropy import CrossEntropy
from kedit.results.scores import mean_scores, per_case

CASES = world.cases(edits=5, limit=5, seed=3).cases
QUICK = Evaluator(fluency_tokens=0)


class StepTrace(Editor):
    """Writes down what happens to it; each edit adds 1 to one weight, so that state can be seen."""

    needs_train = True

    def __init__(self) -> None:
        self.events: list[str] = []
        self.noise: list[tuple[float, float, float]] = []

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        self.events.append(f"fit {len(train)}")

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        [weight] = lm.track(lm.anatomy.parameters(lm.model, "mlp_out.weight", [2]))
        weight.data[0, 0] += 1
        self.events.append("+" * len(edits))
        self.noise.append((float(torch.rand(())), random.random(), float(np.random.rand())))
        return {"steps": 1}

    def reset(self) -> None:
        self.events.append("!")


@pytest.mark.parametrize(
    ("steps", "events", "weight"),
    [
        (single(CASES[:3]), "+ ! + ! + !", 0),
        (sequential(CASES, 3), "+ + +", 3),
        (blocks(CASES[:3], 2), "+ + ! + !", 0),
        (incremental(CASES, 2), "+ +", 2),
        (mass(CASES, 4), "++++", 1),
    ],
)
def test_settings_drive_the_editor(lm: LM, steps: object, events: str, weight: int) -> None:
    before = float(lm.model.model.layers[2].mlp.down_proj.weight[0, 0])
    editor = StepTrace()
    experiment(lm, steps, editor, QUICK, train=CASES)  # type: ignore[arg-type]
    assert " ".join(editor.events) == f"fit 5 {events}"
    assert float(lm.model.model.layers[2].mlp.down_proj.weight[0, 0]) == pytest.approx(before + weight, abs=1e-5)


def test_edits_so_far_counts_from_the_last_restore(lm: LM) -> None:
    journal = InMemoryJournal()
    experiment(lm, blocks(CASES, 2), StepTrace(), QUICK, journal=journal)
    assert [step["edits_so_far"] for step in journal.steps] == [0, 1, 2, 1, 2, 1]
    tests = [row for row in journal.rows if row["when"] == "test" and row["kind"] == "reliability"]
    assert [(row["step"], row["edits_so_far"], row["T"]) for row in tests] == [(2, 2, 2)] * 2 + [(4, 2, 2)] * 2 + [
        (5, 1, 2)
    ]


def test_randomness_is_seeded_for_each_step(lm: LM) -> None:
    def noise(steps: int, seed: int) -> list[tuple[float, float, float]]:
        lm.restore()
        editor = StepTrace()
        experiment(lm, sequential(CASES, steps), editor, QUICK, seed=seed)
        return editor.noise

    assert noise(4, seed=1)[:3] == noise(3, seed=1)
    assert noise(3, seed=1) != noise(3, seed=2)
    assert len(set(noise(4, seed=1))) == 4


def test_each_edit_is_scored_right_after_it(lm: LM) -> None:
    rows = experiment(
        lm, sequential(CASES, 3), StepTrace(), Evaluator(fluency_tokens=0, each_edit=["reliability", "generality"])
    )
    after = [(row["step"], row["case"], row["kind"]) for row in rows if row["when"] == "edit"]
    assert after == [(i + 1, CASES[i].id, kind) for i in range(3) for kind in ("reliability", "generality")]


class FailsOn(FineTune):
    """Diverges on one edit, after it has changed the weights; or (not `begins`) leaves it out."""

    def __init__(self, prompt: str, begins: bool = True):
        super().__init__(loss=CrossEntropy(), lr=1e-3, steps=3)
        self.prompt, self.begins = prompt, begins

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        fails = edits[0].prompt == self.prompt
        cost = super().edit(lm, [] if fails and not self.begins else edits)
        if fails and self.begins:
            raise FloatingPointError("the loss is nan")
        return cost


def test_a_failed_edit_is_undone_marked_and_the_run_goes_on(lm: LM) -> None:
    journal = InMemoryJournal()
    experiment(lm, sequential(CASES, 3), FailsOn(CASES[1].edits[0].prompt), QUICK, journal=journal)
    assert [step["failed"] for step in journal.steps[1:]] == [0, 1, 0]
    kept = {name: value.clone() for name, value in lm.state().items()}
    lm.restore()
    experiment(lm, sequential(CASES, 3), FailsOn(CASES[1].edits[0].prompt, begins=False), QUICK)
    assert all(torch.equal(value, lm.state()[name]) for name, value in kept.items())


class Remembers(FailsOn):
    """Keeps what it was taught beside the model, too."""

    def __init__(self, prompt: str):
        super().__init__(prompt)
        self.taught: list[int] = []

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        self.taught.append(len(self.taught))
        return super().edit(lm, edits)

    def state(self) -> dict[str, torch.Tensor | str]:
        return {"taught": torch.tensor(self.taught)}

    def load_state(self, lm: LM, state: Mapping[str, torch.Tensor | str]) -> None:
        self.taught = state["taught"].tolist()  # type: ignore[union-attr]


def test_what_a_failed_edit_taught_the_editor_is_undone_too(lm: LM) -> None:
    editor = Remembers(CASES[1].edits[0].prompt)
    experiment(lm, sequential(CASES, 3), editor, QUICK)
    assert editor.taught == [0, 1]


def test_perplexity_of_the_held_out_text_is_the_alarm(lm: LM) -> None:
    journal = InMemoryJournal()
    dataset = world.cases(edits=2, seed=3)
    experiment(lm, sequential(dataset.cases, 2), StepTrace(), QUICK, held_out=dataset.held_out, journal=journal)
    assert [("perplexity" in step) for step in journal.steps] == [True, False, True]


def test_questions_are_asked_in_parts_of_whole_cases(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> list[dict]:
        lm.restore()
        made = experiment(lm, sequential(CASES, 5), StepTrace(), Evaluator(fluency_tokens=20))
        return [row | {"nll": pytest.approx(row["nll"], abs=1e-4)} if "nll" in row else row for row in made]

    whole = rows()
    monkeypatch.setattr("kedit.loop.step_runner.PART", 7)
    monkeypatch.setattr("kedit.lm.model.POOL", 3)
    assert rows() == whole


class Commits(InMemoryJournal):
    """Writes down after which steps a commit must not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.forced: list[int] = []

    def commit(self, lm: LM, editor: Editor, *, now: bool) -> None:
        self.forced += [self.steps[-1]["step"]] * now


@pytest.mark.parametrize(
    ("steps", "forced"),
    [
        (single(CASES), [0, 5]),
        (sequential(CASES, 5, checkpoints=[2, 4]), [0, 2, 4, 5]),
        (blocks(CASES, 2), [0, 5]),
        (incremental(CASES, 5), [0, 1, 5]),  # the first test is of all that was edited so far
        (mass(CASES, 5), [0, 1]),
    ],
    ids=["single", "sequential", "blocks", "incremental", "mass"],
)
def test_only_checkpoints_and_the_last_step_force_a_commit(lm: LM, steps: Iterator[Step], forced: list[int]) -> None:
    journal = Commits()
    experiment(lm, steps, StepTrace(), QUICK, journal=journal)
    assert journal.forced == forced


def test_a_steps_scores_are_the_tables(lm: LM) -> None:
    """Without a frame, of every kind there is, ROME's success instead of token match too."""
    cases = [replace(case, probes=case.probes + tuple(rome(case))) for case in CASES[:3]]
    kinds = [
        "reliability",
        "generality",
        "portability",
        "locality",
        "fluency",
        "efficacy",
        "paraphrase",
        "neighborhood",
    ]
    evaluator = Evaluator(kinds=kinds, scoring=["forced", "generate"], fluency_tokens=20)  # type: ignore[arg-type]
    rows = [row for row in experiment(lm, sequential(cases, 3), StepTrace(), evaluator) if row["when"] == "test"]
    rows[0]["token"] = math.nan
    frame = {kind: per_case(pd.DataFrame(rows), kind) for kind in KINDS}
    assert mean_scores(rows) == pytest.approx({kind: found.mean() for kind, found in frame.items() if len(found)})
    assert set(mean_scores(rows)) == set(kinds)
    assert mean_scores([]) == {}


def rome(case: Case) -> Iterator[Probe]:
    """Two competing objects; one of its probes has none."""
    for kind, old in (("efficacy", "Anne"), ("paraphrase", None), ("neighborhood", "Anne")):
        yield Probe(kind, case.edits[0].prompt, (case.edits[0].target_new,), competing_answer=old)  # type: ignore[arg-type]
