"""Loaders: literal records, excerpts of every format, the counts of the full files, what is said of malformed ones."""

import json
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import TESTS

from kedit.cases import Case, Edit, Probe, questions_of
from kedit.common.errors import InputError
from kedit.data import Dataset, counterfact, knowedit, load, qaedit, wikibigedit, zsre_mend
from kedit.data.files import Origin, parse_file, recognise
from kedit.data.records import Record, answers
from kedit.data.report import conflicts, contradicted, overwritten


def parsed(form: Any, data: dict[str, Any]) -> tuple[Case, Counter[str]]:
    dropped: Counter[str] = Counter()
    return form.parse(Record(data, "file: record 0"), "file-0", dropped), dropped


def counts(cases: list[Case]) -> dict[str, int]:
    return dict(Counter(probe.kind for case in cases for probe in case.probes))


def rome(paraphrases: int, neighbors: int) -> dict[str, int]:
    return {"paraphrase": paraphrases, "neighborhood": neighbors}


# --- literal records -------------------------------------------------------------------------------------------------


def test_knowedit_zsre_record() -> None:
    case, dropped = parsed(
        knowedit,
        {
            "subject": "Epaspidoceras",
            "prompt": "Which family does Epaspidoceras belong to?",
            "target_new": "Noctuidae",
            "ground_truth": ["Aspidoceratidae"],
            "rephrase_prompt": "What family are Epaspidoceras?",
            "locality": {"Relation_Specificity": [{"prompt": "Epaspidoceras taxon rank", "ground_truth": ["genus"]}]},
            "portability": {"Reasoning": [{"prompt": "What is its common name?", "ground_truth": "Owlet moths"}]},
        },
    )
    prompt = "Which family does Epaspidoceras belong to?"
    assert case == Case(
        "file-0",
        (Edit(prompt, "Noctuidae", "Epaspidoceras", "Aspidoceratidae"),),
        (
            Probe("reliability", prompt, ("Noctuidae",)),
            Probe("generality", "What family are Epaspidoceras?", ("Noctuidae",)),
            Probe("portability", "What is its common name?", ("Owlet moths",), "Reasoning"),
            Probe("locality", "Epaspidoceras taxon rank", ("genus",), "Relation_Specificity"),
            Probe("fluency", prompt, ()),
        ),
    )
    assert not dropped


def test_knowedit_wikibio_record_has_other_names() -> None:
    case, _ = parsed(
        knowedit,
        {
            "text": "This is a Wikipedia passage about x y. X Y was born.",
            "labels": "He studied in London.",
            "concept": "x y",
            "locality": {"Relation_Specificity": [{"prompt": "x y field of work", "ground_truth": ["medicine"]}]},
        },
    )
    assert case.edits == (Edit("This is a Wikipedia passage about x y. X Y was born.", "He studied in London.", "x y"),)
    assert [probe.kind for probe in case.probes] == ["reliability", "locality", "fluency"]


def test_kdpos_wikibio_script_asks_the_first_locality_question() -> None:
    group = [{"prompt": "a", "ground_truth": "x"}, {"prompt": "b", "ground_truth": "y"}]
    record = Record(GOOD | {"locality": {"Relation_Specificity": group}}, "file: record 0")
    for first_only, expected in ((False, ["a", "b"]), (True, ["a"])):
        case = knowedit.parse(record, "file-0", Counter(), first_locality_only=first_only)
        assert [probe.prompt for probe in case.probes if probe.kind == "locality"] == expected


def test_blank_answers_and_unknown_groups_are_dropped_and_counted() -> None:
    group = [
        {"prompt": "a", "ground_truth": [[], ["x"]]},
        {"prompt": "b", "ground_truth": ""},
        {"prompt": "c", "ground_truth": [["USSR", "Soviet Union"], ["Russia"]]},
    ]
    data = {"subject": "s", "prompt": "s is", "target_new": "t", "locality": {"Relation_Specificity": group, "New": []}}
    case, dropped = parsed(knowedit, data | {"portability": {"Logical_Generalization": []}})
    [locality] = [probe for probe in case.probes if probe.kind == "locality"]
    assert locality.answers == ("USSR", "Soviet Union", "Russia")
    assert dropped == {
        "locality probe with a blank answer": 2,
        "locality group 'New', which is not KnowEdit's": 1,
        "portability group without a question": 1,
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Paris", ("Paris",)),
        (["Paris", "City of Light"], ("Paris", "City of Light")),
        ([["Paris", "Lutetia"], ["Rome"]], ("Paris", "Lutetia", "Rome")),
        ([[], ["Rome"]], ()),
        ([], ()),
        (["  ", "x"], ()),
        (" Paris", (" Paris",)),
    ],
)
def test_answers_come_as_text_list_or_list_of_lists(value: Any, expected: tuple[str, ...]) -> None:
    assert answers(value, Record({}, "file: record 0"), "ground_truth") == expected


def test_counterfact_in_romes_form() -> None:
    data = {
        "requested_rewrite": {
            "prompt": "{} is located in",
            "target_new": {"str": "Antarctica", "id": "Q51"},
            "target_true": {"str": "Africa", "id": "Q15"},
            "subject": "Angola",
        },
        "paraphrase_prompts": ["P. Angola belongs to", "Q. Angola is part of"],
        "neighborhood_prompts": ["Ghana is in"],
        "generation_prompts": ["Angola's surroundings include"],
    }
    case, _ = parsed(counterfact, data)
    assert case.edits == (Edit("Angola is located in", "Antarctica", "Angola", "Africa"),)
    rome = {"efficacy": 1, "paraphrase": 2, "neighborhood": 1}
    assert counts([case]) == {"reliability": 1, "generality": 2, "locality": 1, "fluency": 1} | rome
    assert case.probes[3] == Probe("locality", "Ghana is in", ("Africa",), "neighborhood")


def test_counterfact_in_the_flat_form() -> None:
    [record] = json.loads((TESTS / "data" / "counterfact_flat.json").read_text())[:1]
    case, _ = parsed(counterfact, record)
    assert case.edits[0].prompt == "The mother tongue of Danielle Darrieux is"
    assert case.probes[2] == Probe("locality", "Michel Rocard is a native speaker of", ("French",), "neighborhood")


def test_zsre_mend_keeps_its_literal_prefix() -> None:
    data = {"subject": "S", "src": "What is S?", "rephrase": "S is what?", "alt": "new", "answers": ["old"]}
    data |= {"loc": "nq question: who", "loc_ans": "me", "portability": {"New Question": "Q?", "New Answer": "A"}}
    case, _ = parsed(zsre_mend, data)
    assert case.edits == (Edit("What is S?", "new", "S", "old"),)
    assert Probe("locality", "nq question: who", ("me",), "neighborhood") in case.probes
    assert Probe("portability", "Q?", ("A",), "one_hop") in case.probes


def test_a_qaedit_record() -> None:
    data = {"id": 3, "source": "NQ", "prompt": "who is S?", "target": "A", "subject": "the S", "rephrase": "S is who?"}
    data["locality"] = [
        {"loc": "who else", "loc_ans": "B"},
        {"loc": "and", "loc_ans": " "},
        {"loc": "or", "loc_ans": "C"},
    ]
    case, dropped = parsed(qaedit, data)
    assert case.edits == (Edit("who is S?", "A", "the S"),)
    assert counts([case]) == {"reliability": 1, "generality": 1, "locality": 2, "fluency": 1, "efficacy": 1} | rome(
        1, 2
    )
    assert dropped == {"locality probe with a blank answer": 1}
    one = qaedit.parse(Record(data, "here"), "c", Counter(), first_locality_only=True)
    assert counts([one])["locality"] == 1


def test_a_wikibigedit_record() -> None:
    data = {"tag": "new", "subject": "S", "update": "What is S?", "ans": "A", "rephrase": "S is what?"}
    data |= {"personas": "Arr, S?", "loc": "What is T?", "loc_ans": "B", "mhop": "Where is what S is?", "mhop_ans": "C"}
    case, dropped = parsed(wikibigedit, data)
    assert case.edits == (Edit("What is S?", "A", "S"),)
    groups = [(probe.kind, probe.group, probe.answers) for probe in case.probes if probe.group]
    assert groups == [
        ("generality", "rephrase", ("A",)),
        ("generality", "personas", ("A",)),
        ("portability", "multi_hop", ("C",)),
        ("locality", "same_relation", ("B",)),
    ]
    short, _ = parsed(wikibigedit, data | {"mhop": None, "mhop_ans": None, "personas": None, "personas_2": "Yo, S?"})
    assert counts([short]) == {"reliability": 1, "generality": 2, "locality": 1, "fluency": 1}
    assert not dropped


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("qaedit_inter", qaedit),
        ("mirage_counterfact_edit", counterfact),
        ("locft_counterfact", counterfact),
        ("locft_wikibigedit", counterfact),
        ("locft_zsre", zsre_mend),
    ],
)
def test_samples_of_strict_evaluations_data(test_data: Path, name: str, form: Any) -> None:
    path = test_data / "beyond" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"no {path}")
    assert recognise(path) is form
    cases = parse_file(form.parse, path, False, Counter())
    assert len(cases) == len(json.loads(path.read_text("utf-8"))) >= 20
    assert all(counts([case])["generality"] == 1 for case in cases)


# --- excerpts: each loader and the count logic run everywhere --------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form", "expected", "dropped"),
    [
        ("zsre", knowedit, {"generality": 20, "portability": 20, "locality": 40}, {}),
        ("wikibio", knowedit, {"locality": 40}, {}),
        ("wikidata_recent", knowedit, {"portability": 40, "locality": 82}, {"locality probe": 3, "group without": 3}),
        ("wikidata_counterfact", knowedit, {"portability": 31, "locality": 26}, {"locality probe": 2}),
        ("counterfact_flat", counterfact, {"generality": 20, "locality": 20} | rome(20, 20), {}),
        ("counterfact_rome", counterfact, {"generality": 40, "locality": 200, "fluency": 200} | rome(40, 200), {}),
        ("zsre_mend", zsre_mend, {"generality": 18, "locality": 18} | rome(18, 18), {"empty target": 2}),
        (
            "zsre_mend_portability",
            zsre_mend,
            {"generality": 20, "portability": 20, "locality": 20} | rome(20, 20),
            {},
        ),
    ],
)
def test_excerpts(name: str, form: Any, expected: dict[str, int], dropped: dict[str, int]) -> None:
    path, lost = TESTS / "data" / f"{name}.json", Counter()
    cases = parse_file(form.parse, path, True, lost)
    n = 18 if name == "zsre_mend" else 20
    assert recognise(path) is form
    expected |= {"efficacy": n} if "paraphrase" in expected else {}
    assert counts(cases) == {"reliability": n, "fluency": n} | expected
    assert {word: sum(n for reason, n in lost.items() if word in reason) for word in dropped} == dropped
    assert sum(lost.values()) == sum(dropped.values())
    assert all(case.id.startswith(f"{name}-") for case in cases)


def test_questions_count_within_kind_and_group() -> None:
    [case, *_] = parse_file(knowedit.parse, TESTS / "data" / "zsre.json", False, Counter())
    assert [(q.probe.kind, q.index) for q in questions_of(case, ("locality",))] == [("locality", 0), ("locality", 1)]


# --- the full files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form", "rows", "portability", "locality", "subjects", "prompts", "conflicting", "contradicted_n"),
    [
        ("knowedit/ZsRE-test-all.json", knowedit, 1304, 1304, 2608, 1071, 1286, 10, 0),
        ("knowedit/wikibio-test-all.json", knowedit, 306, 0, 612, 131, 306, 0, 0),
        ("knowedit/wikibio-train-all.json", knowedit, 464, 0, 928, 157, 464, 0, 0),
        ("knowedit/recent_train.json", knowedit, 570, 751, 1937, 570, 570, 0, 0),
        ("knowedit/train_cf.json", knowedit, 1428, 2219, 2034, 1365, 1417, 0, 54),
        ("counterfact/counterfact-edit.json", counterfact, 10000, 0, 10000, 9587, 9917, 62, 210),
        ("counterfact/counterfact-train.json", counterfact, 10000, 0, 10000, None, None, None, None),
        ("counterfact/counterfact_locft_3k.json", counterfact, 3000, 0, 3000, None, None, None, None),
        ("counterfact/counterfact_rome_500.json", counterfact, 500, 0, 5000, 498, 500, 0, 12),
        ("zsre_mend/zsre_mend_eval_portability_gpt4_1037.json", zsre_mend, 1037, 1037, 1037, 743, 1037, 0, 0),
        ("zsre_mend/zsre_mend_train_1k.json", zsre_mend, 998, 0, 998, 989, 998, 0, 0),
    ],
)
def test_counts_of_the_full_files(
    test_data: Path,
    name: str,
    form: Any,
    rows: int,
    portability: int,
    locality: int,
    subjects: int | None,
    prompts: int | None,
    conflicting: int | None,
    contradicted_n: int | None,
) -> None:
    """Counted by others before (KEDAS Table 12 among them); null: nobody did."""
    cases = parse_file(form.parse, test_data / name, True, Counter())
    kinds = counts(cases)
    assert (len(cases), kinds.get("portability", 0), kinds["locality"]) == (rows, portability, locality)
    if subjects is not None:
        assert len({case.edits[0].subject for case in cases}) == subjects
        assert len({case.edits[0].prompt for case in cases}) == prompts
        assert len(conflicts(cases)) == conflicting
        assert len(contradicted(cases)) == contradicted_n


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("ZsRE-test-all.json", {"Reasoning": 771, "Subject_Aliasing": 264, "Logical_Generalization": 269}),
        ("recent_train.json", {"Reasoning": 476, "Subject_Aliasing": 52, "Logical_Generalization": 223}),
        ("train_cf.json", {"Reasoning": 504, "Subject_Aliasing": 1410, "Logical_Generalization": 305}),
    ],
)
def test_portability_groups_of_the_full_files(test_data: Path, name: str, groups: dict[str, int]) -> None:
    cases = parse_file(knowedit.parse, test_data / "knowedit" / name, False, Counter())
    assert Counter(p.group for case in cases for p in case.probes if p.kind == "portability") == groups


def test_empty_groups_are_counted(test_data: Path) -> None:
    dropped: Counter[str] = Counter()
    parse_file(knowedit.parse, test_data / "knowedit/recent_train.json", False, dropped)
    assert dropped == {"locality probe with a blank answer": 9, "portability group without a question": 35}


def test_kdpos_deduplication(test_data: Path) -> None:
    """1071 ZsRE subjects; WikiBio 131 by the rule, 74 by the toggle of the released files."""
    zsre = load(knowedit.parse, path=str(test_data / "knowedit/ZsRE-test-all.json"), dedup="first")
    assert (len(zsre.cases), zsre.dropped) == (1071, {"repeated subject": 233})
    for dedup, expected in (("first", 131), ("odd_toggle_last", 74), ("none", 306)):
        path = str(test_data / "knowedit/wikibio-test-all.json")
        assert len(load(knowedit.parse, path=path, dedup=dedup).cases) == expected


# --- choosing --------------------------------------------------------------------------------------------------------


def zsre(**options: Any) -> Dataset:
    return load(knowedit.parse, path=str(TESTS / "data" / "zsre.json"), **options)


def test_limit_and_order() -> None:
    assert [case.id for case in zsre(limit=3).cases] == ["zsre-0", "zsre-1", "zsre-2"]
    shuffled = zsre(order_seed=1, limit=5).cases
    assert shuffled == zsre(order_seed=1, limit=5).cases
    assert shuffled != zsre(limit=5).cases
    assert zsre().sha256 == zsre(limit=1).sha256


def test_deduplication_rules(tmp_path: Path) -> None:
    rows = [{"subject": s, "prompt": f"{s} {i} is", "target_new": "t", "locality": {}} for i, s in enumerate("aabab")]
    (tmp_path / "f.json").write_text(json.dumps(rows))

    def kept(dedup: Any) -> str:
        return "".join(c.id[-1] for c in load(knowedit.parse, path=str(tmp_path / "f.json"), dedup=dedup).cases)

    assert (kept("none"), kept("first"), kept("odd_toggle_last")) == ("01234", "02", "3")


def test_conflicts_are_reported() -> None:
    def case(i: int, prompt: str, target: str, *locality: tuple[str, str]) -> Case:
        probes = tuple(Probe("locality", p, (a,)) for p, a in locality)
        return Case(str(i), (Edit(prompt, target, "s"),), probes)

    cases = [case(0, "p", "x", ("q", "old")), case(1, "p", "y", ("q", "z")), case(2, "q", "z")]
    assert conflicts(cases) == {"p": {"x", "y"}}
    assert [c.id for c in overwritten(cases)] == ["0"]
    assert [(c.id, prompt) for c, prompt in contradicted(cases)] == [("0", "q")]


# --- malformed -------------------------------------------------------------------------------------------------------

GOOD = {"subject": "s", "prompt": "s is", "target_new": "t", "locality": {}, "portability": {}}


@pytest.mark.parametrize(
    ("form", "data", "said"),
    [
        (knowedit, GOOD | {"prompt": None}, "'prompt' is missing"),
        (knowedit, GOOD | {"prompt": 7}, "'prompt' is int"),
        (knowedit, GOOD | {"prompt": " "}, "'prompt' is blank"),
        (knowedit, GOOD | {"locality": [1]}, "locality is list"),
        (knowedit, GOOD | {"locality": {"Forgetfulness": "x"}}, "'Forgetfulness' is not a list"),
        (knowedit, GOOD | {"locality": {"Forgetfulness": [{"ground_truth": "x"}]}}, r"Forgetfulness\[0\].*'prompt'"),
        (
            knowedit,
            GOOD | {"locality": {"Forgetfulness": [{"prompt": "p", "ground_truth": 3}]}},
            "'ground_truth' holds",
        ),
        (counterfact, {"requested_rewrite": {"subject": "s", "prompt": "no place"}}, "needs one {}"),
        (counterfact, {"requested_rewrite": {"subject": "s"}}, "requested_rewrite.*'prompt'"),
        (zsre_mend, {"src": "q", "alt": "a"}, "'rephrase' is missing"),
        (zsre_mend, "text", "not an object"),
    ],
)
def test_a_malformed_record_is_named(tmp_path: Path, form: Any, data: Any, said: str) -> None:
    file = tmp_path / "f.json"
    file.write_text(json.dumps([GOOD, data] if form is knowedit else [data]))
    with pytest.raises(InputError, match=said) as caught:
        load(form.parse, path=str(file))
    assert f"f.json: record {1 if form is knowedit else 0}" in str(caught.value)


def test_an_empty_target_stops_or_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text(json.dumps([GOOD, GOOD | {"target_new": " "}]))
    with pytest.raises(InputError, match=r"record 1: .*empty target.*drop_empty_targets"):
        load(knowedit.parse, path=str(file))
    dataset = load(knowedit.parse, path=str(file), drop_empty_targets=True)
    assert (len(dataset.cases), dataset.dropped) == (1, {"edit with an empty target": 1})


@pytest.mark.parametrize(("text", "said"), [("[{", "not json"), ("{}", "no list"), ("[]", "no list")])
def test_a_file_that_is_no_list_of_records(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(InputError, match=said):
        load(knowedit.parse, path=str(tmp_path / "f.json"))


def test_without_the_hub_the_error_says_which_file_to_give() -> None:
    with pytest.raises(InputError, match=r"benchmark/ZsRE/ZsRE-test-all.json .*zjunlp/KnowEdit.*dataset.path=FILE"):
        Origin("zjunlp/KnowEdit", "benchmark/ZsRE/ZsRE-test-all.json", "main", None, None).file()
    with pytest.raises(InputError, match=r"dataset.path=FILE"):
        Origin(None, None, "main", None, None).file()


def test_an_editor_that_learns_needs_a_training_file() -> None:
    with pytest.raises(InputError, match="train_path"):
        zsre(train=True)
    same = str(TESTS / "data" / "zsre.json")
    assert len(zsre(train=True, train_path=same, train_overlap="keep").train) == 20


@pytest.mark.parametrize(
    ("file", "status", "said"), [("zsre.json", 0, "20 distinct subjects"), ("nope.json", 1, "no such file")]
)
def test_report_on_the_command_line(file: str, status: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-m", "kedit.data", TESTS / "data" / file], capture_output=True, text=True)
    assert done.returncode == status
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_training_cases_about_what_is_tested_are_dropped_and_counted(tmp_path: Path) -> None:
    def flat(subject: str, neighbor: str) -> dict[str, str]:
        return {
            "prompt": f"{subject} speaks",
            "target_new": "English",
            "subject": subject,
            "ground_truth": "French",
            "rephrase_prompt": f"One hears {subject} speak",
            "locality_prompt": f"{neighbor} speaks",
            "locality_ground_truth": "French",
        }

    (tmp_path / "edit.json").write_text(json.dumps([flat("Anne Roux", "Luc Petit")]))
    names = ["Anne Roux", "luc petit", "Luc", "Zoe Blanc"]
    train = [*(flat(name, "Max Noir") for name in names), flat("Eva Vert", "Luc  petit")]
    (tmp_path / "train.json").write_text(json.dumps(train))
    given = {"path": str(tmp_path / "edit.json"), "train_path": str(tmp_path / "train.json"), "train": True}
    dataset = load(counterfact.parse, **given)
    assert [case.edits[0].subject for case in dataset.train] == ["Zoe Blanc"]
    assert dataset.dropped == {
        "training case about a subject that a test asks about": 3,
        "training case with a question that a test asks": 1,
    }
    kept = load(counterfact.parse, **given, train_overlap="keep")
    assert len(kept.train) == 5
    assert kept.notes == dataset.notes
    assert "of 1 test subjects 1 occur in the training split, and of 3 test questions 3" in dataset.notes[0]


def test_a_training_split_of_several_files_of_any_form(tmp_path: Path) -> None:
    """A file of the test's own form is read with its options."""
    files = [str(TESTS / "data" / f"{name}.json") for name in ("zsre_mend", "counterfact_flat")]
    dataset = zsre(train=True, train_path=files, train_overlap="keep", drop_empty_targets=True)
    assert Counter(case.id.rpartition("-")[0] for case in dataset.train) == {"zsre_mend": 18, "counterfact_flat": 20}
    assert dataset.dropped["training: edit with an empty target"] == 2
    answers = partial(zsre_mend.parse, target="answers")
    assert len(load(answers, path=files[0], train_path=files[0], train_overlap="keep", train=True).train) == 20
    assert not load(answers, path=files[0]).notes


@pytest.mark.parametrize(
    ("path", "train", "said"),
    [
        ("knowedit/wikibio-test-all.json", ["knowedit/wikibio-train-all.json"], "of 131 test subjects 125 occur"),
        (
            "knowedit/ZsRE-test-all.json",
            ["zsre_mend/zsre_mend_train_1k.json", "knowedit/recent_train.json", "knowedit/train_cf.json"],
            "of 1071 test subjects 1 occur in the training split, and of 6336 test questions 0",
        ),
    ],
)
def test_what_the_training_splits_hold_of_the_tests(test_data: Path, path: str, train: list[str], said: str) -> None:
    """WikiBio's 125 were counted by others before."""
    paths = [str(test_data / name) for name in train]
    dataset = load(knowedit.parse, path=str(test_data / path), train_path=paths, train=True, drop_empty_targets=True)
    assert dataset.notes[0].startswith(said)
