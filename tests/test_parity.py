"""Scores equal those of the field's reference framework, case by case; tests/parity/README.md says what a file holds.

Any other file of this form (other rows, data, architectures; single and incremental) is tested in the same way: put it,
and its model's folder, into tests/parity/ or a folder named by KEDIT_PARITY.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TESTS

from kedit.cases import Case, Edit, Kind, Probe, Question
from kedit.data.files import parse_file, recognise
from kedit.editors.finetune.per_edit import FineTune
from kedit.evaluation.answers import Answer
from kedit.evaluation.evaluator import Evaluator, Row
from kedit.lm import LM, load
from kedit.loop.runner import experiment
from kedit.loop.settings import incremental, single
from kedit.losses.cross_entropy import CrossEntropy

FOLDERS = [TESTS / "parity", *map(Path, filter(None, os.environ.get("KEDIT_PARITY", "").split(os.pathsep)))]
FILES = sorted(file for folder in FOLDERS for file in folder.glob("*.json"))


class Recording(Evaluator):
    """EasyEdit's way of asking; keeps the argmax ids of the last grading of each question."""

    def __init__(self) -> None:
        super().__init__(easyedit_padding="left", fluency_tokens=0, each_edit=[])
        self.pred: dict[Question, list[list[int]]] = {}

    def grade(self, question: Question, after: Answer, before: Answer, *verdicts: Any) -> list[Row]:
        self.pred.setdefault(question, []).append(after.forced[0].pred)
        return super().grade(question, after, before, *verdicts)


def asked(request: dict[str, Any], kind: Kind) -> list[Probe]:
    return [
        Probe(kind, prompt, (answer,), group)
        for group, questions in (request.get(kind) or {}).items()
        for prompt, answer in zip(listed(questions["prompt"]), listed(questions["ground_truth"]), strict=True)
    ]


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def case(index: int, request: dict[str, Any]) -> Case:
    target = request["target_new"]
    probes = [Probe("reliability", request["prompt"], (target,))]
    probes += [Probe("generality", text, (target,)) for text in listed(request.get("rephrase_prompt") or [])]
    probes += asked(request, "portability") + asked(request, "locality")
    return Case(str(index), (Edit(request["prompt"], target, request["subject"]),), tuple(probes))


def editor(lm: LM, hparams: dict[str, Any]) -> FineTune:
    if hparams["objective_optimization"] != "target_new":
        pytest.skip(f"objective {hparams['objective_optimization']}: no loss of this kind yet")
    template = hparams["rewrite_module_tmp"]
    part = "mlp_out.weight" if template.endswith(".weight") else "mlp_out"
    assert template.removesuffix(".weight") == lm.anatomy.mlp_out
    return FineTune(
        loss=CrossEntropy(),
        lr=hparams["lr"],
        weight_decay=float(hparams["weight_decay"]),
        steps=hparams["num_steps"],
        stop_loss=1e-2,
        parameters=part,
        layers=hparams["layers"],
        norm_constraint=hparams["norm_constraint"] or None,
        batch_size=hparams["batch_size"],
    )


def scores(rows: Sequence[Row], kind: str, group: str) -> list[float]:
    return [row["token"] for row in rows if row["kind"] == kind and row["group"] == group]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_score_and_every_locality_id_is_the_references(file: Path) -> None:
    reference = json.loads(file.read_text())
    run, expected = reference["run"], reference["cases"]
    lm = load(str(file.parent / Path(run["model"]).name), keep_edge_spaces=True)
    evaluator = Recording()
    cases = [case(i, one["requested_rewrite"]) for i, one in enumerate(expected)]
    steps = incremental(cases, len(cases)) if run["sequential"] else single(cases)
    rows = experiment(lm, steps, editor(lm, run["hparams"]), evaluator)
    for i, one in enumerate(expected):
        for phase, when in (("pre", "before"), ("post", "test")):
            mine = [row for row in rows if row["case"] == str(i) and row["when"] == when]
            theirs = one[phase]
            assert scores(mine, "reliability", "") == pytest.approx(theirs["rewrite_acc"], abs=1e-6)
            if "rephrase_acc" in theirs:
                assert scores(mine, "generality", "") == pytest.approx(theirs["rephrase_acc"], abs=1e-6)
            for name, values in (theirs.get("portability") or {}).items():
                assert scores(mine, "portability", name.removesuffix("_acc")) == pytest.approx(values, abs=1e-6)
            for name, values in (theirs.get("locality") or {}).items():
                group = name.removesuffix("_acc").removesuffix("_output")
                if name.endswith("_acc"):
                    assert scores(mine, "locality", group) == pytest.approx(values, abs=1e-6)
                else:
                    graded = [p for q, p in evaluator.pred.items() if q.case == str(i) and q.probe.group == group]
                    assert [p[0 if phase == "pre" else -1] for p in graded] == values


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_loader_asks_what_the_reference_asked(file: Path) -> None:
    reference = json.loads(file.read_text())
    run = reference["run"]
    folder = Path(os.environ.get("KEDIT_TEST_DATA") or TESTS / "data")
    name = Path(run["data"]).name
    data = next(folder.rglob(name), TESTS / "data" / "zsre.json" if name == "ZsRE-test-all.json" else None)
    if data is None:
        pytest.skip(f"{name} is not here; set KEDIT_TEST_DATA")
    loader = recognise(data)
    from collections import Counter

    loaded = parse_file(loader.parse, data, True, Counter())[run["start"] :]
    for mine, one in zip(loaded, reference["cases"], strict=False):
        theirs = case(0, one["requested_rewrite"])
        assert [replace(edit, target_old=None) for edit in mine.edits] == list(theirs.edits)  # not given to its editors
        for kind in ("portability", "locality"):
            prompts = [(p.prompt, p.answers[0]) for p in mine.probes if p.kind == kind]
            assert sorted(prompts) == sorted((p.prompt, p.answers[0]) for p in theirs.probes if p.kind == kind)
