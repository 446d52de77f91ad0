"""MQuAKE: its layouts, its counts, hand-computed scores, and cases of several edits in every setting."""

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_settings import trace

from kedit.cases import Case, Edit, Frame, Probe, Question, questions_of
from kedit.common.errors import InputError
from kedit.data import Dataset, load, mquake
from kedit.data.dataset import select
from kedit.data.files import dataset_of
from kedit.data.records import Record
from kedit.data.report import conflicts, report
from kedit.evaluation.answers import Answer
from kedit.evaluation.baseline import baseline_answers
from kedit.evaluation.evaluator import Evaluator
from kedit.evaluation.metrics.free_answer import contains_answer
from kedit.lm import LM, Scored
from kedit.loop.settings import blocks, incremental, mass, sequential, single
from kedit.results.columns import COLUMNS
from kedit.results.scores import PAPER, by_case, mean_scores, per_case, summary


def rewrite(subject: str, new: str, old: str, flat: bool = False) -> dict[str, Any]:
    targets = (
        {"target_new_str": new, "target_true_str": old}
        if flat
        else {"target_new": {"str": new, "id": "Q1"}, "target_true": {"str": old, "id": "Q2"}}
    )
    return {
        "prompt": "{} is a citizen of",
        "relation_id": "P27",
        "subject": subject,
        "question": f"What is the country of citizenship of {subject}?",
        **targets,
    }


def hop(cloze: str, answer: str, *aliases: str) -> dict[str, Any]:
    return {"question": f"{cloze} what?", "cloze": cloze, "answer": answer, "answer_alias": list(aliases)}


def record(*rewrites: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "case_id": 1,
        "requested_rewrite": list(rewrites or [rewrite("Mary Harney", "Nigeria", "Ireland")]),
        "questions": ["Who leads her country?", "Who heads it?", "Who is its leader?"],
        "answer": "Leo Varadkar",
        "answer_alias": [],
        "new_answer": "Muhammadu Buhari",
        "new_answer_alias": ["Sai Buhari", "PMB"],
        "single_hops": [hop("Mary Harney is a citizen of", "Ireland"), hop("Ireland is led by", "Leo Varadkar")],
        "new_single_hops": [
            hop("Mary Harney is a citizen of", "Nigeria", "NGA"),
            hop("Nigeria is led by", "Muhammadu Buhari"),
        ],
    } | more


def parsed(data: dict[str, Any], **options: Any) -> tuple[Case | None, Counter[str]]:
    dropped: Counter[str] = Counter()
    return mquake.parse(Record(data, "file: record 0"), "file-0", dropped, **options), dropped


ANSWERS = ("Muhammadu Buhari", "Sai Buhari", "PMB")


@pytest.mark.parametrize("flat", [False, True], ids=["original", "remastered"])
def test_a_record_of_either_layout(flat: bool) -> None:
    case, dropped = parsed(record(rewrite("Mary Harney", "Nigeria", "Ireland", flat)))
    cloze = "Mary Harney is a citizen of"
    assert case == Case(
        "file-0",
        (Edit(cloze, "Nigeria", "Mary Harney", "Ireland"),),
        (
            Probe("reliability", cloze, ("Nigeria",)),
            Probe("one_hop", "What is the country of citizenship of Mary Harney?", ("Nigeria",)),
            Probe("multi_hop", "Who leads her country?", ANSWERS, "2_hops", fold="any"),
            Probe("multi_hop", "Who heads it?", ANSWERS, "2_hops", fold="any"),
            Probe("multi_hop", "Who is its leader?", ANSWERS, "2_hops", fold="any"),
            Probe("all_hops", cloze, ("Nigeria", "NGA"), fold="all"),
            Probe("all_hops", "Nigeria is led by", ("Muhammadu Buhari",), fold="all"),
        ),
    )
    assert not dropped


def test_chains_of_another_length_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    longer = record(new_single_hops=[hop("a", "b"), hop("b", "c"), hop("c", "d")])
    path.write_text(json.dumps([record(), longer, record()]))
    data = load(partial(mquake.parse, hops=2), path=str(path))
    assert [case.id for case in data.cases] == ["cases-0", "cases-2"]
    assert data.dropped == {"chain of 3 facts": 1}
    assert dataset_of(path) == "mquake"


SPLIT = {"1000": ["edited"], "6000": ["train_edited"]}


@pytest.mark.parametrize("label", ["edited", "train_edited", "test_edited"])
def test_a_case_that_a_split_edits_is_an_ordinary_one(label: str) -> None:
    assert parsed(record(split={"1000": [label]}), split=1000) == parsed(record())


@pytest.mark.parametrize("label", ["unedited", "test_unedited"])
def test_a_case_that_a_split_does_not_edit_is_asked_for_the_old_answer(label: str) -> None:
    case, _ = parsed(record(split={"1000": [label]}, answer="Leo Varadkar", answer_alias=["Varadkar"]), split=1000)
    assert case
    assert not case.edited
    assert [(probe.kind, probe.answers, probe.fold) for probe in case.probes] == [
        ("unedited_multi_hop", ("Leo Varadkar", "Varadkar"), "any")
    ] * 3


def test_a_case_without_a_part_in_a_split_is_left_out_and_counted() -> None:
    assert parsed(record(split={"1000": []}), split=1000) == (None, {"case that split 1000 leaves out": 1})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (record(split=SPLIT), "has no '500'; set dataset.parse.split to one of 1000, 6000, or to null"),
        (record(), "has no '500'; set dataset.parse.split to null"),
    ],
)
def test_a_split_that_a_record_does_not_have_is_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=r"file: record 0") as error:
        parsed(data, split=500)
    assert said in str(error.value)


def test_overtones_prompts_stand_around_the_question() -> None:
    case, _ = parsed(record(), prompts="overtone")
    assert case
    frames = {probe.kind: probe.frame for probe in case.probes}
    assert frames["reliability"] is None
    assert frames["one_hop"]
    assert frames["one_hop"].max_new == 30
    assert frames["multi_hop"]
    assert frames["multi_hop"].max_new == 200
    assert "Subquestion:" in frames["multi_hop"].before
    assert all("Final answer: Jill Biden" in frame.before for frame in frames.values() if frame)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (record(new_single_hops=[]), "'new_single_hops' holds no fact"),
        (record(questions=[]), "'questions' holds no question"),
        (record(requested_rewrite=[]), "'requested_rewrite' holds no edit"),
        (record(rewrite("Mary", "a", "b") | {"prompt": "no place"}), "needs one {} in the place of the subject"),
        (record(new_answer=None), "'new_answer' is missing"),
    ],
)
def test_a_malformed_record_names_its_field(data: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=r"file: record 0") as error:
        parsed(data)
    assert said in str(error.value)


# --- the files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cases", "edits", "distinct", "in_conflict", "hops"),
    [
        ("mquake_cf_akew_354", 354, 436, 337, 0, {"2_hops": 139, "3_hops": 138, "4_hops": 77}),
        ("mquake_hard_429", 429, 1716, 769, 2, {"4_hops": 429}),
    ],
)
def test_counts_of_the_files(
    test_data: Path, name: str, cases: int, edits: int, distinct: int, in_conflict: int, hops: dict[str, int]
) -> None:
    """Distinct: (subject, relation, new target); in conflict: facts that two cases edit to different targets."""
    path = test_data / f"mquake/{name}.json"
    data = load(mquake.parse, path=str(path))
    made = [edit for case in data.cases for edit in case.edits]
    rewrites = [one for record in json.loads(path.read_text()) for one in record["requested_rewrite"]]
    by_relation = {(one["subject"], one["relation_id"], one["target_new"]["str"]) for one in rewrites}
    assert len(data.cases) == cases
    assert len(made) == edits
    assert len({(edit.prompt, edit.target_new) for edit in made}) == len(by_relation) == distinct
    assert len(conflicts(data.cases)) == in_conflict
    assert Counter(group(case) for case in data.cases) == hops
    assert f"{edits} edits, at most" in "\n".join(report(data.cases))


def group(case: Case) -> str:
    return next(probe.group for probe in case.probes if probe.kind == "multi_hop")


# --- scores -----------------------------------------------------------------------------------------------------------


def rows_of(scores: dict[str, dict[str, list[float]]], scoring: str = "forced") -> list[dict[str, Any]]:
    """{case: {kind: shares}} as rows."""
    folds = {"multi_hop": "any", "all_hops": "all"}
    column = {"forced": "token", "generate": "exact"}[scoring]
    return [
        {"step": 1, "when": "test", "case": case, "kind": kind, "group": "", "scoring": scoring, column: value}
        | ({"fold": folds[kind]} if kind in folds else {})
        for case, kinds in scores.items()
        for kind, values in kinds.items()
        for value in values
    ]


def test_any_wording_and_all_hops_by_hand() -> None:
    """Of multi_hop 1, 0, 0.5 -> 50; of all hops 0.5, 0, 1 -> 50; of two edits' prompts the mean."""
    rows = rows_of(
        {
            "a": {"reliability": [1, 0], "multi_hop": [0, 1, 0], "all_hops": [1, 0.5]},
            "b": {"reliability": [1], "multi_hop": [0, 0, 0], "all_hops": [1, 0]},
            "c": {"reliability": [1], "multi_hop": [0.5, 0.25, 0], "all_hops": [1, 1]},
        }
    )
    frame = pd.DataFrame(rows)
    expected = {"reliability": 250 / 3, "multi_hop": 50, "all_hops": 50}
    for kind, value in expected.items():
        assert per_case(frame, kind).mean() == pytest.approx(value)
    assert mean_scores(rows) == pytest.approx(expected)
    [line] = summary(frame.assign(when="test", T=3)).query("T == 3").to_dict("records")
    assert {kind: line[COLUMNS[kind]] for kind in expected} == pytest.approx(expected)


def test_overtones_columns_are_of_free_answers_and_their_average_is_of_three() -> None:
    forced = rows_of({"a": {"reliability": [0.5], "one_hop": [0], "multi_hop": [0, 0]}})
    free = rows_of({"a": {"reliability": [0], "one_hop": [1], "multi_hop": [0, 1]}}, "generate")
    line = by_case(pd.DataFrame(forced + free), PAPER["overtone"]).iloc[0]
    assert (line["edit_success"], line["one_hop"], line["two_hop"]) == (50, 100, 100)


def test_a_free_answer_contains_the_answer_whatever_its_letter_case() -> None:
    assert contains_answer("So the final answer: muhammadu BUHARI.", ["PMB", "Muhammadu Buhari"])
    assert not contains_answer("I do not know.", ["PMB", ""])


def test_a_frame_is_read_and_no_part_of_what_a_memory_is_looked_up_by(lm: LM) -> None:
    seen: list[tuple[str, str]] = []
    route = lm.route

    def spy(prompts: Any, keys: Any) -> Any:
        seen.extend(zip(prompts, keys, strict=True))
        return route(prompts, keys)

    lm.route = spy
    frame = Frame("Q: ", "\nA:", 3, contains=True)
    question = Question("a", 0, Probe("one_hop", "The capital of Arvenia is", ("Ashbrook",), frame=frame))
    evaluator = Evaluator(scoring=["forced", "generate"], kinds=["one_hop"])
    [answer] = evaluator.answer(lm, [question])
    assert set(seen) == {("The capital of Arvenia is", "The capital of Arvenia is")}
    assert answer.forced[0].gold == lm.answer(["Q: The capital of Arvenia is\nA:"], ["Ashbrook"])[0].gold
    assert answer.forced[0].logprob == lm.answer(["Q: The capital of Arvenia is\nA:"], ["Ashbrook"])[0].logprob
    said = Answer((Scored([1], [1], [0.0], "Ashbrook", "Ashbrook"),), "It is ashbrook, I think")
    [_, written] = evaluator.grade(question, said, said)
    assert written["exact"] == 1


def test_a_framed_question_is_kept_apart_from_the_bare_one(
    lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    evaluator = Evaluator(scoring=["forced", "generate"], kinds=["one_hop"])
    bare = Probe("one_hop", "The capital of Arvenia is", ("Ashbrook",))
    frames = [None, Frame("Q: ", "\nA:", 3), Frame("Q: ", "\nA:", 9), Frame("", "\nA:", 3)]
    asked = [Question("a", 0, replace(bare, frame=frame)) for frame in frames]
    alone = [baseline_answers(lm, evaluator, [question])[question] for question in asked]
    for kept, now in zip(alone, evaluator.answer(lm, asked), strict=True):
        assert kept.generated == now.generated
        assert kept.forced[0].logprob == pytest.approx(now.forced[0].logprob, abs=1e-3)


# --- several edits a case ---------------------------------------------------------------------------------------------


def several(**sizes: int) -> list[Case]:
    return [
        Case(name, tuple(Edit(f"{name}{i} is", "x", f"{name}{i}") for i in range(size)), ())
        for name, size in sizes.items()
    ]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (lambda cases: sequential(cases, 5), "+a +b ?ab=3"),  # c would make 6
        (lambda cases: sequential(cases, 6), "+a +b +c ?abc=6"),
        (lambda cases: sequential(cases, "all"), "+a +b +c +d ?abcd=7"),
        (lambda cases: sequential(cases, 7, checkpoints=[2, 4]), "+a ?a=2 +b ?ab=3 +c +d ?abcd=7"),
        (lambda cases: sequential(cases, 7, batch_size=3), "+ab +c +d ?abcd=7"),
        (lambda cases: blocks(cases, 4), "+a +b ?ab=4 ! +c +d ?cd=4 !"),
        (lambda cases: mass(cases, 3), "+ab ?ab=3"),
        (lambda cases: incremental(cases, 3), "+a ?a=3 +b ?b=3"),
        (lambda cases: single(cases), "+a ?a=1 ! +b ?b=1 ! +c ?c=1 ! +d ?d=1 !"),
    ],
)
def test_T_counts_edits_and_no_case_is_cut(steps: Any, expected: str) -> None:
    assert trace(steps(several(a=2, b=1, c=3, d=1))) == expected


def test_a_T_that_no_case_fits_or_no_data_fill_is_refused() -> None:
    cases = several(a=2, b=1)
    with pytest.raises(InputError, match=r"T=1: the first case has 2 edits, and a case is never cut"):
        mass(cases, 1)
    with pytest.raises(InputError, match=r"T=4 is more than the dataset's 3 edits \(2 cases\)"):
        mass(cases, 4)


def test_a_case_repeats_a_subject_if_one_of_its_edits_does() -> None:
    a, b = several(a=2, b=1)
    again = Case("again", (Edit("c0 is", "x", "c0"), a.edits[1]), ())
    dropped: Counter[str] = Counter()
    assert select([a, again, b], dedup="first", order_seed=None, limit=None, dropped=dropped) == (a, b)
    assert dropped == {"repeated subject": 1}


def test_questions_of_a_chain_keep_their_places() -> None:
    case, _ = parsed(record())
    assert case
    assert [q.index for q in questions_of(case, ("multi_hop",))] == [0, 1, 2]
    assert isinstance(Dataset((case,)), Dataset)
