"""What the data does not say stays unsaid: no field stands in for another that means something else."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from odd_files import FLAT, KNOWEDIT, MEND, ROME, SIMPLE, WIKIBIGEDIT, WIKIBIO

from kedit.cases import Case, Edit, Probe, questions_of
from kedit.common.errors import InputError
from kedit.covariance.corpora import texts
from kedit.data import counterfact, knowedit, zsre_mend
from kedit.data.dataset import leakage_note, select
from kedit.data.records import Record
from kedit.data.wikirecent import WikiRecent
from kedit.editors.extra_examples import known_facts
from kedit.editors.incontext.alignment_examples import FromCases
from kedit.editors.incontext.prompts import UpdatedInformation
from kedit.editors.knowledge_neurons import KnowledgeNeurons
from kedit.editors.swea.subject_batch import subject_batch
from kedit.evaluation.evaluator import Evaluator
from kedit.lm import LM
from kedit.lm.trained import nothing_trained
from kedit.losses import LossInputs
from kedit.losses.cross_entropy import CrossEntropy
from kedit.losses.dpo import PreferNewAnswer

ROMES = ("efficacy", "paraphrase", "neighborhood")


def parsed(form: Any, record: dict[str, Any], **options: Any) -> Case:
    return form.parse(Record(record, "file: record 0"), "file-0", Counter(), **options)


def without(record: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != field}


@pytest.mark.parametrize(
    ("form", "record", "options"),
    [
        (counterfact, WIKIBIGEDIT, {}),
        (counterfact, FLAT | {"ground_truth": None}, {}),
        (counterfact, FLAT | {"ground_truth": ""}, {}),
        (counterfact, FLAT | {"ground_truth": []}, {}),
        (knowedit, without(KNOWEDIT, "ground_truth"), {}),
        (knowedit, WIKIBIO, {}),
        (zsre_mend, without(MEND, "answers"), {}),
        (zsre_mend, MEND | {"pred": "Bergen", "answers": []}, {}),
        (zsre_mend, MEND, {"target": "answers"}),
    ],
)
def test_an_old_answer_that_is_not_stated_is_none(form: Any, record: dict[str, Any], options: dict[str, Any]) -> None:
    case = parsed(form, record, **options)
    assert case.edits[0].target_old is None
    assert [probe.competing_answer for probe in case.probes] == [None] * len(case.probes)


def test_an_old_answer_that_is_stated_competes() -> None:
    for record, form in ((FLAT, counterfact), (ROME, counterfact), (KNOWEDIT, knowedit), (MEND, zsre_mend)):
        assert parsed(form, record).edits[0].target_old == "Bergen"
    for record in (FLAT, ROME):
        competing = {p.kind: p.competing_answer for p in parsed(counterfact, record).probes if p.kind in ROMES}
        assert competing == {"efficacy": "Bergen", "paraphrase": "Bergen", "neighborhood": "Oslo"}
    apart = parsed(counterfact, FLAT | {"ground_truth": ["Bergen", "Bjorgvin"], "locality_ground_truth": "Rome"})
    assert apart.edits[0].target_old == "Bergen"
    assert [p.answers for p in apart.probes if p.kind == "neighborhood"] == [("Rome",)]


def test_without_an_old_answer_romes_kinds_are_token_match(lm: LM) -> None:
    evaluator = Evaluator(kinds=ROMES, each_edit=[])
    for record, columns in ((WIKIBIGEDIT, 0), (FLAT, 3)):
        asked = questions_of(parsed(counterfact, record), ROMES)
        answers = evaluator.answer(lm, asked)
        rows = evaluator.grade_all(asked, answers, dict(zip(asked, answers, strict=True)))
        assert [row["kind"] for row in rows] == list(ROMES)
        assert all("token" in row for row in rows)
        assert sum("success" in row for row in rows) == columns


def test_editors_see_no_old_answer(lm: LM) -> None:
    """KN takes what the model says now; DPO and SWEA+OS leave the edit without a term."""
    [edit] = parsed(counterfact, WIKIBIGEDIT).edits
    [old] = KnowledgeNeurons(steps=1, threshold=0.5)._old(lm, [edit])
    own = lm.greedy_continuation(lm.encode([edit.prompt], [edit.target_new]))
    assert old == own.pairs[0]
    loss = PreferNewAnswer(CrossEntropy(), alpha=0.5, beta=0.1)
    view = LossInputs(lm, [edit], lm.encode([edit.prompt], [edit.target_new]), nothing_trained())
    loss.refresh(view, view.logits().detach(), cycle=0)
    assert loss.rows == []
    assert torch.equal(loss(view, view.logits()), CrossEntropy()(view, view.logits()))
    assert subject_batch(lm, "Ada Ling", [[edit]], ["Ada Ling is"]).old == []


def case(id: str, prompt: str, new: str, old: str | None = None, subject: str | None = None) -> Case:
    return Case(id, (Edit(prompt, new, subject, old),), (Probe("reliability", prompt, (new,)),))


def test_a_counterfactual_answer_is_no_known_fact() -> None:
    """Of a file that states old answers, a record without one has no answer that is known to be true."""
    train = [
        case("counterfact-0", "a", "x", "true"),
        case("counterfact-1", "b", "y"),
        case("recent-0", "c", "also true"),
        case("recent-1", "d", "too"),
    ]
    assert {fact.prompt: fact.target_new for fact in known_facts(train, 3)} == {
        "a": "true",
        "c": "also true",
        "d": "too",
    }
    with pytest.raises(InputError, match="has 1 facts with a known answer"):
        known_facts(train[:2], 2)


def test_a_prompt_is_no_subject() -> None:
    """Cases that name no subject repeat none, share none with the training split, and trade none."""
    cases = [case(f"f-{i}", prompt, "x") for i, prompt in enumerate(("p", "q", "r"))]
    for dedup in ("first", "odd_toggle_last"):
        assert select(cases, dedup=dedup, order_seed=None, limit=None, dropped=Counter()) == tuple(cases)
    assert leakage_note(cases, cases)[0].startswith("of 0 test subjects 0 occur")
    source = FromCases(draws={"in_scope": 1}, renamed=1.0, rounds=8, facts=[1.0], encoder=None)
    said = source.build(cases, UpdatedInformation(template="{facts} ? {query}"))["in_scope"]
    assert {talk.prompt for talk in said} == {f"{prompt} x ? {prompt}" for prompt in ("p", "q", "r")}


def test_an_instruction_without_its_input_is_no_question(tmp_path: Path) -> None:
    file = tmp_path / "general.json"
    asked = [{"instruction": "Translate.", "input": "Haus", "output": "house"}, {"instruction": "Hi", "output": "Hi"}]
    file.write_text(json.dumps([*asked, {"instruction": "Bye", "input": "", "output": "Bye"}]))
    source = FromCases(draws={"general_alone": 1}, rounds=20, general=str(file), encoder=None)
    said = source.build([case("f-0", "p", "x")], UpdatedInformation(template="{facts}{query}"))["general_alone"]
    assert {talk.prompt for talk in said} == {"Translate.\n\nHaus", "Hi", "Bye"}


def test_neighbors_without_a_competing_object_are_not_drawn(tmp_path: Path) -> None:
    """A flat file without old answers has no neighbour that shares one."""
    file = tmp_path / "flat.json"
    file.write_text(json.dumps([WIKIBIGEDIT, FLAT | {"locality_prompt": "Eve lives in"}]))
    recent = WikiRecent(counterfact=str(file), neighbors=1)(Record(SIMPLE, "r"), "recent-0", Counter())
    assert [p.prompt for p in recent.probes if p.kind == "neighborhood"] == ["Eve lives in"]
    with pytest.raises(InputError, match="has 1 neighbourhood prompts with a competing object"):
        WikiRecent(counterfact=str(file), neighbors=2)


@pytest.mark.parametrize(("line", "said"), [('{"text": null}', "NoneType"), ('{"text": 7}', "int"), ("[1]", "no JSON")])
def test_a_null_is_no_text_of_a_corpus(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text('\ufeff{"text": "One."}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"corpus.jsonl: line 2.*{said}"):
        texts(str(file))


def test_a_corpus_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_bytes("K\u00f6ln".encode("latin1"))
    with pytest.raises(InputError, match=r"corpus.txt is not UTF-8 text"):
        texts(str(tmp_path / "corpus.txt"))
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfOne.")
    assert list(texts(str(tmp_path / "marked.txt"))) == ["One."]
