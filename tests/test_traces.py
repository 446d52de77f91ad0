"""What an edit does while it is made: recorded without changing it, journalled like rows."""

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_kedit
from forked import Forked
from test_finetune import configured
from test_resume import assert_same

from kedit import world
from kedit.cases import Case
from kedit.editors.finetune.per_edit import FineTune
from kedit.evaluation.evaluator import Evaluator
from kedit.lm import LM
from kedit.loop.in_memory_journal import InMemoryJournal
from kedit.loop.runner import experiment
from kedit.loop.settings import sequential
from kedit.losses.cross_entropy import CrossEntropy

CASES = world.cases(edits=3, limit=3, seed=3).cases
KINDS = ["reliability", "generality", "portability"]


def run(lm: LM, editor: FineTune, each_step: list[Any], cases: Any = CASES) -> InMemoryJournal:
    lm.restore()
    journal = InMemoryJournal()
    evaluator = Evaluator(fluency_tokens=0, each_step=each_step)
    experiment(lm, sequential(cases, len(cases)), editor, evaluator, journal=journal)
    return journal


@pytest.mark.parametrize("name", ["ft_m", "kdpo", "lora", "adalora"])
def test_an_edit_that_is_followed_is_the_same_edit(lm: LM, name: str) -> None:
    given = ["editor.adapter.dropout=0.1"] if "lora" in name else []
    given += [] if name == "adalora" else ["editor.steps=4"]
    made = []
    for each_step in ([], KINDS):
        journal = run(lm, configured(f"editor={name}", *given), each_step, CASES[:2])
        weights = {key: value.clone() for key, value in lm.state().items()}
        made.append((journal.rows, [step["loss"] for step in journal.steps[1:]], weights))
    assert made[0][:2] == made[1][:2]
    assert all(torch.equal(value, made[1][2][key]) for key, value in made[0][2].items())
    assert journal.traces


def test_a_trace_begins_as_the_edit_found_the_model_and_has_every_optimiser_step(lm: LM) -> None:
    journal = run(lm, FineTune(loss=CrossEntropy(), lr=1e-3, steps=5), KINDS)
    for step, case in zip(journal.steps[1:], CASES, strict=True):
        mine = [r for r in journal.traces if r["step"] == step["step"]]
        assert {r["case"] for r in mine} == {case.id}
        assert [r["kind"] for r in mine if r["at"] == 0] == [p.kind for p in case.probes if p.kind in KINDS]
        edit = [r for r in mine if r["kind"] == "reliability"]
        assert [r["at"] for r in edit] == list(range(step["steps"] + 1))
        assert [r["loss"] for r in edit[1:]] == pytest.approx([r["nll"] for r in edit[:-1]], abs=2e-4)
        assert edit[-1]["nll"] < edit[0]["nll"]
        assert "".join(edit[0]["tokens"]).strip() == case.edits[0].target_new


def test_the_models_own_words_are_its_greedy_continuation(lm: LM) -> None:
    [record] = run(lm, FineTune(loss=CrossEntropy(), lr=1e-3, steps=1), ["reliability"], CASES[:1]).traces[:1]
    lm.restore()
    [pair] = lm.text.pairs([CASES[0].edits[0].prompt], [CASES[0].edits[0].target_new])
    ids, own = list(pair.prompt), []
    for _ in record["tokens"]:
        logprobs = lm.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        ids.append(int(logprobs.argmax()))
        own.append(float(logprobs.max()))
    assert record["own_logprob"] == pytest.approx(own, abs=1e-5)
    assert all(math.isfinite(value) and value <= 0 for value in own)


def test_nothing_is_asked_of_an_editor_where_nobody_listens(lm: LM, tmp_path: Path) -> None:
    editor = FineTune(loss=CrossEntropy(), lr=1e-3, steps=2)
    assert run(lm, editor, []).traces == []
    assert editor.on_step is None
    without = Case(CASES[0].id, CASES[0].edits, CASES[0].probes[:1])
    assert run(lm, editor, ["portability"], [without]).traces == []


def test_an_editor_without_optimiser_steps_of_its_own_is_refused(tmp_path: Path) -> None:
    done = run_kedit(tmp_path, "editor=ft_mask", "setting=mass", "T=4", "eval.each_step=[reliability]")
    assert done.returncode == 1
    assert "StandardFineTune does not tell its optimiser steps" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_run_leaves_the_same_traces(tmp_path: Path) -> None:
    given = ["T=12", "save=true", "eval.fluency_tokens=0", "eval.each_step=[reliability,portability]"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    killed.mkdir()
    assert run_kedit(straight, *given).returncode == 0
    env = {**os.environ, "KEDIT_RUNS": str(killed / "runs")}
    command = [*given, "tracker=none", "commit_every_s=0"]
    process = Forked("kedit.run", command, env=env, cwd=killed, says=tmp_path / "said")
    while process.poll() is None and not [p for p in killed.rglob("traces.jsonl") if p.stat().st_size > 20_000]:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    [torn] = killed.rglob("traces.jsonl")
    with open(torn, "a") as file:
        file.write('{"step": 99, "to')
    done = run_kedit(killed, *given)
    assert done.returncode == 0, done.stderr
    [one], [other] = ([path.parent for path in folder.rglob("traces.jsonl")] for folder in (straight, killed))
    assert (one / "traces.jsonl").read_text() == (other / "traces.jsonl").read_text()
    assert len({json.loads(line)["step"] for line in (one / "traces.jsonl").read_text().splitlines()}) == 12
    assert_same(one, other)
