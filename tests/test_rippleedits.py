"""RippleEdits: three hand-made records, its conditions asked of the unedited model, its criteria."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_cells import make_cell

from kedit import world
from kedit.cases import Case, Condition, Edit, Frame, Probe, Question, condition_question, questions_of
from kedit.common.errors import InputError
from kedit.data import load, rippleedits
from kedit.data.files import dataset_of
from kedit.data.records import Record
from kedit.editors.finetune import FineTune
from kedit.evaluation.evaluator import Evaluator
from kedit.lm import LM
from kedit.loop.runner import experiment
from kedit.loop.settings import single
from kedit.loop.step_runner import all_questions
from kedit.losses.cross_entropy import CrossEntropy
from kedit.reports.table.plain import tables
from kedit.results.cells import Cell
from kedit.results.scores import mean_scores

FRAME = Frame("", "", 50, contains=True)


def query(prompt: str, *objects: tuple[str, ...]) -> dict[str, Any]:
    answers = [{"value": names[0], "aliases": list(names[1:])} for names in objects]
    return {"prompt": prompt, "answers": answers, "query_type": "regular"}


def ripple_test(word: str, *queries: dict[str, Any], conditions: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"test_queries": list(queries), "test_condition": word, "condition_queries": list(conditions)}


POPULAR = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the mother of Ann Lee is Eva Moor.",
        "subject_id": "Q1",
        "relation": "MOTHER",
        "target_id": "Q2",
        "original_fact": {"prompt": "The name of the mother of Ann Lee is Ida Lee.", "target_id": "Q3"},
    },
    "Relation_Specificity": [ripple_test("OR", query("The gender of Ann Lee is", ("female", "woman")))],
    "Logical_Generalization": [
        ripple_test(
            "AND",
            query("The siblings of Ann Lee are", ("Bo Moor", "B. Moor"), ("Cy Moor",)),
            query("The uncle of Ann Lee is"),
            conditions=(query("The children of Eva Moor are", ("Bo Moor",)),),
        ),
        ripple_test("OR", query("The grandmother of Ann Lee is", ("Uma Moor", "U"))),
    ],
    "Subject_Aliasing": [],
    "Forgetfulness": [],
}
RECENT = {
    "example_type": "recent",
    "edit": {"prompt": "The name of the head of government of Elbonia is Bob Ray.", "relation": "HEAD_OF_GOVERNMENT"},
    "Compositionality_I": [ripple_test("OR", query("The gender of the head of government of Elbonia is", ("male",)))],
}


def parsed(data: dict[str, Any]) -> tuple[Case, Counter[str]]:
    dropped: Counter[str] = Counter()
    return rippleedits.parse(Record(data, "file: record 0"), "file-0", dropped), dropped


def test_a_counterfactual_record_counts_if_its_old_fact_was_known() -> None:
    case, dropped = parsed(POPULAR)
    prompt = "The name of the mother of Ann Lee is"
    assert case.edits == (Edit(prompt, "Eva Moor", "Ann Lee", "Ida Lee"),)
    known = Condition(Probe("reliability", prompt, ("Ida Lee",), frame=FRAME))
    made = Condition(Probe("reliability", prompt, ("Eva Moor",), frame=FRAME), edited=True)
    child = Condition(Probe("reliability", "The children of Eva Moor are", ("Bo Moor",), frame=FRAME))
    siblings = (("Bo Moor", "B. Moor"), ("Cy Moor",))
    assert case.probes == (
        Probe("reliability", prompt, ("Eva Moor",)),
        Probe(
            "logical_generalization",
            "The siblings of Ann Lee are",
            siblings[0],
            "0",
            fold="all",
            frame=FRAME,
            every=siblings,
            conditions=(known, made, child),
        ),
        Probe(
            "logical_generalization",
            "The grandmother of Ann Lee is",
            ("Uma Moor",),
            "1",
            fold="any",
            frame=FRAME,
            conditions=(known, made),
        ),
        Probe(
            "relation_specificity",
            "The gender of Ann Lee is",
            ("female", "woman"),
            "0",
            fold="any",
            frame=FRAME,
            conditions=(known, made),
        ),
    )
    assert dropped == {"logical_generalization query without an answer": 1}


def test_a_recent_record_counts_if_its_new_fact_was_not_known() -> None:
    case, _ = parsed(RECENT)
    prompt = "The name of the head of government of Elbonia is"
    assert case.edits == (Edit(prompt, "Bob Ray", "Elbonia"),)
    new_fact = Probe("reliability", prompt, ("Bob Ray",), frame=FRAME)
    assert case.probes[1].conditions == (Condition(new_fact, right=False), Condition(new_fact, edited=True))


def test_a_file_of_the_form_is_recognised_and_read(tmp_path: Path) -> None:
    path = tmp_path / "popular.json"
    path.write_text(json.dumps([POPULAR, RECENT]))
    assert dataset_of(path) == "rippleedits"
    assert len(load(rippleedits.parse, path=str(path)).cases) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"edit": {"prompt": "Ann runs."}}, "needs an object behind ' is ' or ' are '"),
        ({"Forgetfulness": [{"test_condition": "XOR", "test_queries": []}]}, "'XOR'; give OR or AND"),
        ({"edit": {"prompt": "A is b.", "original_fact": {"prompt": "A is b."}}}, "no object of it stands where"),
    ],
)
def test_a_malformed_record_names_its_field(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match="file: record 0") as error:
        parsed(POPULAR | change)
    assert said in str(error.value)


def test_what_the_unedited_model_does_not_know_does_not_count(lm: LM) -> None:
    """Of two tests on the world's facts one has a condition that fails: it is told, and no part of the score."""
    right = Condition(Probe("reliability", "The capital of Arvenia is", (capital(lm),), frame=FRAME))
    wrong = Condition(Probe("reliability", "The capital of Arvenia is", ("Nowhere",), frame=FRAME))
    probes = [
        Probe(
            "preservation", "The capital of Beloria is", ("Nowhere",), str(i), fold="any", frame=FRAME, conditions=(c,)
        )
        for i, c in enumerate((right, wrong, Condition(wrong.probe, right=False)))
    ]
    case = Case("a", (Edit("x is", "y"),), tuple(probes))
    evaluator = Evaluator(kinds=["preservation"], scoring=["forced", "generate"], each_edit=[])
    asked = all_questions(list(single([case])), evaluator)
    assert condition_question(asked[0], right) in asked
    before = dict(zip(asked, evaluator.answer(lm, asked), strict=True))
    mine = questions_of(case, ("preservation",))
    rows = evaluator.grade_all(mine, [before[q] for q in mine], before)
    assert [(row["group"], row.get("skipped")) for row in rows if row["scoring"] == "generate"] == [
        ("0", None),
        ("1", 1),
        ("2", None),
    ]
    scored = mean_scores([{"step": 0, "when": "before"} | row for row in rows])
    assert set(scored) == {"preservation"}


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_failed_edit_changed_does_not_count_and_is_told(lm: LM, fails: bool) -> None:
    """Of two edits in weights; the unedited model need not say what the edited one must."""
    cases = world.cases(edits=2, limit=2).cases
    edits = [case.edits[0] for case in cases]
    asked = [
        Condition(Probe("reliability", edit.prompt, (edit.target_new,), frame=FRAME), edited=True) for edit in edits
    ]
    wrong = replace(asked[0], probe=replace(asked[0].probe, answers=("Nowhere",)))
    conditions = [wrong if fails else asked[0], asked[1]]
    probes = [
        (
            Probe("reliability", edit.prompt, (edit.target_new,)),
            Probe("preservation", "The capital of Beloria is", ("Nowhere",), frame=FRAME, conditions=(condition,)),
        )
        for edit, condition in zip(edits, conditions, strict=True)
    ]
    made = [Case(f"c{i}", (edit,), own) for i, (edit, own) in enumerate(zip(edits, probes, strict=True))]
    evaluator = Evaluator(kinds=["reliability", "preservation"], scoring=["forced", "generate"], measures={})
    rows = experiment(lm, single(made), FineTune(loss=CrossEntropy(), lr=1e-3, steps=25), evaluator)
    mine = [row for row in rows if row["kind"] == "preservation" and row["scoring"] == "generate"]
    assert [row.get("edit_failed") for row in mine if row["when"] == "before"] == [None, None]
    assert [row.get("edit_failed") for row in mine if row["when"] == "test"] == [1 if fails else None, None]
    assert len(mine) == 4  # what is asked for the sake of others has no row


def test_a_caption_says_how_many_edits_failed(tmp_path: Path) -> None:
    cells = [make_cell(tmp_path, {"reliability": [1.0, 0.5, 0.0]}, editor=editor) for editor in ("ft_m", "rome")]
    row = {"step": 1, "when": "test", "T": 1, "kind": "preservation", "group": "0", "probe": 0, "scoring": "forced"}
    case = cells[0].rows["case"].iloc[0]
    with (cells[0].directory / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row | {"case": case, "skipped": 1, "edit_failed": 1}) + "\n")
    [(caption, _)] = tables([Cell(cell.directory) for cell in cells])
    assert "1 of 3 edits of ft_m (seed 101) failed: what else changed does not count" in caption
    assert "0 of 3 edits of rome (seed 101) failed" in caption


def capital(lm: LM) -> str:
    return lm.generate(["The capital of Arvenia is"], 2)[0].text.strip().rstrip(".").split()[0]


@pytest.mark.parametrize(("said", "right"), [("Bo Moor and Cy Moor", 1), ("B. Moor", 0), ("Cy Moor", 0)])
def test_a_free_answer_must_name_every_object(said: str, right: int, lm: LM) -> None:
    case, _ = parsed(POPULAR)
    probe = case.probes[1]
    evaluator = Evaluator(kinds=["logical_generalization"], scoring=["generate"], aliases="any")
    question = Question("a", 0, probe)
    [answer] = evaluator.answer(lm, [question])
    told = replace(answer, generated=said)
    assert evaluator.grade(question, told, told)[0]["exact"] == right
