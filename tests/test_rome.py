"""ROME's and MEMIT's evaluation: what competes, Score, brackets, consistency; from the files to the printed table."""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import TESTS, Done
from sklearn.feature_extraction.text import TfidfVectorizer
from test_table import row

from kedit import world
from kedit.cases import Kind, Probe, Question, questions_of
from kedit.common.errors import InputError
from kedit.data import counterfact, zsre_mend
from kedit.data.files import parse_file
from kedit.data.records import Record
from kedit.data.wikirecent import WikiRecent
from kedit.evaluation.baseline import baseline_answers
from kedit.evaluation.consistency import Consistency
from kedit.evaluation.evaluator import Evaluator
from kedit.lm import LM
from kedit.reports.table.plain import shown, tables
from kedit.results.cells import find
from kedit.results.scores import per_case, summary

ROME: list[Kind] = ["efficacy", "paraphrase", "neighborhood", "fluency", "consistency"]
DATA = TESTS / "data"


def asked(kind: Kind, answer: str, competing_answer: str | None) -> Question:
    return Question("c", 0, Probe(kind, "Lucy Kelden was born in", (answer,), competing_answer=competing_answer))


def graded(lm: LM, question: Question) -> dict[str, Any]:
    [answer] = Evaluator(kinds=ROME).answer(lm, [question])
    [row] = Evaluator(kinds=ROME).grade(question, answer, answer)
    return row


# --- rows ------------------------------------------------------------------------------------------------------------


def nll(lm: LM, prompt: str, text: str) -> float:
    """By hand: mean over the object's tokens of -log p, from a forward pass of its own."""
    ids = lm.text.tokenizer(f"{prompt} {text}", return_tensors="pt").input_ids
    start = len(lm.text.tokenizer(prompt).input_ids)
    logp = lm.model(ids).logits[0].log_softmax(-1)
    return -sum(float(logp[i - 1, ids[0, i]]) for i in range(start, ids.shape[1])) / (ids.shape[1] - start)


@pytest.mark.parametrize("kind", ["efficacy", "paraphrase", "neighborhood"])
def test_success_and_magnitude_by_hand(shaped: LM, kind: Kind) -> None:
    question = asked(kind, "Eastford, Beloria", "Redbrook")
    found = graded(shaped, question)
    right, other = (nll(shaped, question.probe.prompt, text) for text in ("Eastford, Beloria", "Redbrook"))
    names = ("nll_true", "nll_new") if kind == "neighborhood" else ("nll_new", "nll_true")
    assert [found[name] for name in names] == pytest.approx([right, other], abs=1e-4)
    assert found["nll"] == found[names[0]]
    assert found["success"] == int(right < other)
    assert found["magnitude"] == pytest.approx(math.exp(-right) - math.exp(-other), abs=1e-4)
    swapped = graded(shaped, asked(kind, "Redbrook", "Eastford, Beloria"))
    assert swapped["success"] == 1 - found["success"]
    assert swapped["magnitude"] == pytest.approx(-found["magnitude"])


def test_a_tie_fails(lm: LM) -> None:
    found = graded(lm, asked("efficacy", "Redbrook", "Redbrook"))
    assert (found["success"], found["magnitude"]) == (0, 0)


def test_without_a_competing_object_there_is_only_token_match(lm: LM) -> None:
    found = graded(lm, asked("neighborhood", "Redbrook", None))
    assert found.keys().isdisjoint({"nll_new", "nll_true", "success", "magnitude"})
    assert found["token"] == 0  # of the true object, not of what the unedited model says


def test_both_objects_are_kept_among_the_pristine_answers(
    lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    all_three = [asked("efficacy", "Redbrook", other) for other in ("Eastford, Beloria", "Northport", None)]
    first = baseline_answers(lm, Evaluator(kinds=ROME), all_three)
    assert baseline_answers(lm, Evaluator(kinds=ROME), all_three) == first
    contrasts = [first[question].competing_answer for question in all_three]
    assert [c and c.gold_text.strip() for c in contrasts] == ["Eastford, Beloria", "Northport", None]


def test_wrong_kinds_are_refused(lm: LM) -> None:
    with pytest.raises(InputError, match=r"consistency compares the texts of fluency; add fluency"):
        Evaluator(kinds=["efficacy", "consistency"])
    with pytest.raises(InputError, match=r"eval.each_edit=\['consistency'\]: choose from"):
        Evaluator(each_edit=["consistency"])
    assert Evaluator(kinds=ROME, fluency_tokens=0).kinds == ("efficacy", "paraphrase", "neighborhood")


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "means", "expected"),
    [("success", (0.994, 0.77, 0.469), 67.6), ("token", (0.967, 0.897, 0.266), 50.8), ("token", (1.0, 0.0, 0.5), 0.0)],
)
def test_scores_that_the_papers_print(field: str, means: tuple[float, ...], expected: float) -> None:
    """FT-W on CounterFact and MEMIT on ZsRE (MEMIT's Table 1)."""
    kinds = ("efficacy", "paraphrase", "neighborhood")
    rows = [row("a", kind, "", 0.3) | {field: mean} for kind, mean in zip(kinds, means, strict=True)]
    assert round(summary(rows).iloc[-1]["Score"], 1) == expected
    assert math.isnan(summary(rows[:2]).iloc[-1]["Score"])  # of two of them it is absent


def test_success_comes_first_and_the_others_on_request() -> None:
    versus = {"success": 1, "magnitude": -0.25}
    rows = [row("a", "neighborhood", "", 0.5, **versus), row("b", "neighborhood", "", 0.5)]  # b: nothing competes
    rows.append(row("a", "reliability", "", 0.5))
    frame = pd.DataFrame(rows)
    assert per_case(frame, "neighborhood").tolist() == [100, 50]
    assert per_case(frame, "neighborhood", "exact").tolist() == [0, 0]
    assert per_case(frame, "neighborhood", "magnitude").tolist() == [-25]
    assert per_case(frame, "reliability").tolist() == [50]
    assert per_case(frame, "reliability", "magnitude").empty


def test_brackets_hold_the_half_width_over_cases() -> None:
    values = {"a": (1, 1), "b": (1, 0), "c": (0, 0)}  # two paraphrases a case: case means 100, 50, 0
    rows = [
        row(case, "paraphrase", "", 0.0, probe=i, success=value)
        for case, pair in values.items()
        for i, value in enumerate(pair)
    ]
    line = summary(rows).iloc[-1]
    assert line["paraphrase"] == 50
    assert line["ci_paraphrase"] == pytest.approx(1.96 * np.std([100, 50, 0]) / math.sqrt(3))


# --- consistency -----------------------------------------------------------------------------------------------------

TEXTS = {"P27/Q142": ["a painter of Paris", "the Seine and Paris"], "P27/Q183": ["a brewer of Munich"]}


def snippets(folder: Path, texts: dict[str, list[str]] = TEXTS) -> str:
    entries = [
        {"relation_id": topic.split("/")[0], "target_id": topic.split("/")[1], "samples": [{"text": t} for t in found]}
        for topic, found in texts.items()
    ]
    (folder / "attribute_snippets.json").write_text(json.dumps(entries))
    return str(folder / "attribute_snippets.json")


def fluency(case: str, index: int, topic: str) -> Question:
    return Question(case, index, Probe("fluency", "p", (), topic=topic))


def test_consistency_is_one_for_equal_texts_and_absent_without_references(tmp_path: Path) -> None:
    references = Consistency(snippets(tmp_path))
    questions_ = [fluency("a", 0, "P27/Q142"), fluency("a", 1, "P27/Q142"), fluency("b", 0, "P27/Q9")]
    rows = references.rows(questions_, [*TEXTS["P27/Q142"], "anything"])
    assert [(r["case"], r["kind"], r["cosine"]) for r in rows] == [("a", "consistency", 1.0)]
    assert references.cosine("beer", "a painter of Paris") == 0
    assert Consistency().rows(questions_, ["x", "y", "z"]) == []


def test_romes_statistics_can_be_given(tmp_path: Path) -> None:
    vectoriser = TfidfVectorizer().fit(["Paris and Munich", "Paris", "a brewer"])
    np.save(tmp_path / "idf.npy", vectoriser.idf_)
    words = {word: int(i) for word, i in vectoriser.vocabulary_.items()}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    given = Consistency(snippets(tmp_path), str(tmp_path / "idf.npy"), str(tmp_path / "vocab.json"))
    a, b = vectoriser.transform(["Paris, Munich", "the brewer of Munich"]).toarray()
    assert given.cosine("Paris, Munich", "the brewer of Munich") == pytest.approx(float(a @ b))
    np.save(tmp_path / "idf.npy", np.ones(3))
    with pytest.raises(InputError, match="belong together"):
        Consistency(snippets(tmp_path), str(tmp_path / "idf.npy"), str(tmp_path / "vocab.json"))


def test_what_is_wrong_with_references_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"/nope: no such file; give it with eval.consistency.path=FILE"):
        Consistency("/nope")
    with pytest.raises(InputError, match="give both, or neither"):
        Consistency(snippets(tmp_path), idf="x.npy")
    (tmp_path / "other.json").write_text('[{"relation_id": "P1"}]')
    with pytest.raises(InputError, match=r"not in the form of attribute_snippets.json \(KeyError: 'target_id'\)"):
        Consistency(str(tmp_path / "other.json"))
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(InputError, match=r"pip install 'kedit\[retrieval\]'"):
        Consistency(snippets(tmp_path))


# --- data ------------------------------------------------------------------------------------------------------------


def test_counterfact_asks_1_2_and_10_of_each_case() -> None:
    cases = parse_file(counterfact.parse, DATA / "counterfact_rome.json", False, Counter())
    records = json.loads((DATA / "counterfact_rome.json").read_text())
    for case, record in zip(cases, records, strict=True):
        rewrite = record["requested_rewrite"]
        new, true = rewrite["target_new"], rewrite["target_true"]["str"]
        found = [(p.kind, p.prompt, p.answers, p.competing_answer) for p in case.probes if p.kind in ROME[:3]]
        assert found == [
            ("efficacy", case.edits[0].prompt, (new["str"],), true),
            *(("paraphrase", text, (new["str"],), true) for text in record["paraphrase_prompts"]),
            *(("neighborhood", text, (true,), new["str"]) for text in record["neighborhood_prompts"]),
        ]
        assert len(found) == 13
        assert case.edits[0].target_old == true
        assert {p.topic for p in case.probes if p.kind == "fluency"} == {f"{rewrite['relation_id']}/{new['id']}"}


def test_flat_counterfact_has_one_of_each() -> None:
    for case in parse_file(counterfact.parse, DATA / "counterfact_flat.json", False, Counter()):
        efficacy, paraphrase, neighbor = (p for p in case.probes if p.kind in ROME[:3])
        assert (
            efficacy.competing_answer == paraphrase.competing_answer == case.edits[0].target_old == neighbor.answers[0]
        )
        assert neighbor.competing_answer == case.edits[0].target_new


def test_zsre_mend_edits_to_the_true_answer() -> None:
    [record, *_] = json.loads((DATA / "zsre_mend_portability.json").read_text())
    case = zsre_mend.parse(Record(record, "file: record 0"), "file-0", Counter(), target="answers")
    true = record["answers"][0]
    assert (case.edits[0].target_new, case.edits[0].target_old) == (true, None)
    assert [p for p in case.probes if p.kind in ROME[:3]] == [
        Probe("efficacy", record["src"], (true,)),
        Probe("paraphrase", record["rephrase"], (true,)),
        Probe("neighborhood", record["loc"] + "?", (record["loc_ans"],)),
    ]
    assert not any(p.kind == "portability" for p in case.probes)  # its questions follow from alt
    with pytest.raises(InputError, match="field 'answers' holds no answer"):
        zsre_mend.parse(Record(record | {"answers": []}, "r"), "file-0", Counter(), target="answers")


def recent(**options: Any) -> Sequence[Any]:
    parse = WikiRecent(counterfact=str(DATA / "counterfact_rome.json"), **options)
    return parse_file(parse, DATA / "wikidata_recent.json", False, Counter())


def test_wikirecent_asks_ten_neighbors_from_counterfact(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"0": ["a", "b"], "2": ["c"]}))
    cases = recent(paraphrases=str(tmp_path / "p.json"))
    assert [sum(p.kind == "paraphrase" for p in case.probes) for case in cases] == [2, 0, 1] + [0] * 17
    pool = parse_file(counterfact.parse, DATA / "counterfact_rome.json", False, Counter())
    known = {p for case in pool for p in case.probes if p.kind == "neighborhood"}
    for case in cases:
        neighbors = [p for p in case.probes if p.kind == "neighborhood"]
        assert len(set(neighbors)) == 10
        assert set(neighbors) <= known
        [efficacy] = [p for p in case.probes if p.kind == "efficacy"]
        assert (efficacy.answers, efficacy.competing_answer) == ((case.edits[0].target_new,), None)
    assert recent() == recent()
    assert recent()[0].probes[-10:] != recent()[1].probes[-10:]
    assert recent()[0].probes[-10:] != recent(seed=1)[0].probes[-10:]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"counterfact": None}, "give a CounterFact file in ROME's form with dataset.parse.counterfact=FILE"),
        ({"counterfact": "/nope.json"}, "/nope.json: no such file; .*dataset.parse.counterfact=FILE"),
        ({"paraphrases": "/nope.json"}, "/nope.json: no such file; .*dataset.parse.paraphrases=FILE"),
        ({"paraphrases": str(DATA / "zsre.json")}, "entry 0 is not a record's index with a list of texts"),
        ({"neighbors": 0}, "dataset.parse.neighbors=0: .* has 200 neighbourhood prompts"),
    ],
)
def test_wikirecent_says_which_file_is_missing(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        WikiRecent(**{"counterfact": str(DATA / "counterfact_rome.json"), **options})


# --- the command line ------------------------------------------------------------------------------------------------


def test_the_table_of_rome(kedit: Callable[..., Done], tmp_path: Path) -> None:
    cases = world.cases(edits=6, limit=6).cases
    first = next(p for p in cases[0].probes if p.kind == "fluency")
    (tmp_path / "refs").mkdir()
    path = snippets(tmp_path / "refs", {first.topic: ["A person who works and lives there."]})
    options = ["dataset.limit=6", "eval.fluency_tokens=30", f"eval.consistency.path={path}"]
    done = kedit("eval=rome", "editor=ft_m", "T=6", *options, COLUMNS="60")
    assert done.returncode == 0, done.stderr
    assert "after 6 edits: efficacy" in done.stdout  # what is logged to wandb
    assert "…" not in done.stdout  # too narrow a terminal cuts nothing off
    [cell] = find(tmp_path / "runs")
    assert cell.meta["files"].keys() == {"eval.consistency.path"}
    [(caption, table)] = tables([cell])
    names = ["model", "T", "efficacy", "paraphrase", "neighborhood", "fluency", "consistency", "Score", "N", "seconds"]
    assert list(shown(table)) == names
    floor, edited = shown(table).to_dict("records")
    for name in ("efficacy", "paraphrase", "neighborhood"):
        assert edited[name] == f"{table[name][1]:.1f} ({table[f'ci_{name}'][1]:.1f})"
    assert "Score = harmonic mean of efficacy, paraphrase and neighborhood" in caption
    assert "consistency has N=" in caption
    having = [case for case in cases if any(p.topic == first.topic for p in case.probes)]
    kinds = cell.rows[cell.rows["kind"] == "consistency"].groupby("when")["case"].agg(list)
    assert kinds.to_dict() == {when: [case.id for case in having] for when in ("before", "test")}
    assert set(cell.rows[cell.rows["when"] == "edit"]["kind"]) == {"efficacy"}
    assert len(cell.rows[cell.rows["when"] == "test"]) == len(having) + sum(
        len(questions_of(case, tuple(ROME))) for case in cases
    )
    assert float(edited["Score"]) >= float(floor["Score"])


def test_a_kind_that_was_asked_and_has_no_probe_shows_a_dash(kedit: Callable[..., Done], tmp_path: Path) -> None:
    options = ["setting=single", "editor=ft_m", "dataset.train_people=518", "eval.fluency_tokens=0"]
    done = kedit(*options, "eval.kinds=[reliability,neighborhood]", "dataset.edits=all")  # so nobody is left to ask
    assert done.returncode == 0, done.stderr
    [(_, table)] = tables(find(tmp_path / "runs"))
    assert list(shown(table)) == ["model", "T", "edit success", "neighborhood", "HM", "Score", "N", "seconds"]
    assert shown(table)["neighborhood"].tolist() == shown(table)["Score"].tolist() == ["-", "-"]
