"""The in-context pipeline: what is stored, found, accepted and read. Its editors' contract is in test_contract.py."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from conftest import Done
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from test_adapters import saved

from kedit import world
from kedit.cases import questions_of
from kedit.common.errors import InputError
from kedit.common.paths import ROOT
from kedit.editors.finetune.epochs import StandardFineTune
from kedit.editors.finetune.lora import LoRA
from kedit.editors.incontext import Candidate, InContext
from kedit.editors.incontext.alignment import Alignment
from kedit.editors.incontext.alignment_examples import Conversations
from kedit.editors.incontext.augmentation import Form, qa
from kedit.editors.incontext.augmentation.world_rules import WorldRules
from kedit.editors.incontext.demonstrations import Demonstrations
from kedit.editors.incontext.edit_memory import EditMemory, Hit, MemoryEntry
from kedit.editors.incontext.prompts import Notes, UpdatedInformation
from kedit.editors.incontext.vector_index import Index
from kedit.evaluation.evaluator import Evaluator
from kedit.lm import LM
from kedit.loop.journal import Journal
from kedit.loop.runner import experiment
from kedit.loop.settings import sequential
from kedit.loop.tracker import Tracker
from kedit.losses.cross_entropy import CrossEntropy

DATA = world.cases(edits=4, limit=4, seed=1, train=True)
EDITS = [case.edits[0] for case in DATA.cases]
TUNER = StandardFineTune(
    loss=CrossEntropy(), lr=1e-3, epochs=1, parameters=None, adapter=LoRA(rank=4, alpha=8)
)  # of an alignment that is there already
SUPPOSED = UpdatedInformation(template="Suppose that {facts}. Then {query}")


def supposing(lm: LM, **parts: object) -> InContext:
    """An editor whose prompt the world's model reads without any alignment, ready for its first edit."""
    editor = InContext(**{"memory": EditMemory(k=2), "prompt": SUPPOSED} | parts)  # type: ignore[arg-type]
    editor.fit(lm, DATA.train)
    return editor


# --- memory ----------------------------------------------------------------------------------------------------------


def test_the_nearest_are_those_of_brute_force() -> None:
    torch.manual_seed(0)
    vectors, queries = (torch.nn.functional.normalize(torch.randn(n, 16), dim=-1) for n in (500, 7))
    index = Index()
    for part in vectors.split(33):
        index.add(part)
    products, places = index.nearest(queries, 5)
    exact = (queries.double() @ vectors.double().T).sort(descending=True)
    assert places.tolist() == exact.indices[:, :5].tolist()
    assert products.double() == pytest.approx(exact.values[:, :5], abs=1e-6)
    assert index.vectors.equal(vectors)


def test_a_graph_finds_nearly_the_same() -> None:
    torch.manual_seed(0)
    vectors, queries = (torch.nn.functional.normalize(torch.randn(n, 16), dim=-1) for n in (2000, 50))
    exact, graph = Index(), Index(approximate_from=1000)
    for part in vectors.split(600):
        exact.add(part)
        graph.add(part)
        graph.nearest(queries, 1)  # is built on the way, and grows
    found, right = graph.nearest(queries, 1)[1], exact.nearest(queries, 1)[1]
    assert float((found == right).float().mean()) > 0.9


def test_a_memory_finds_the_edit_in_any_wording() -> None:
    memory = EditMemory(k=3)
    memory.load()
    assert memory.nearest(["Who?"]) == [[]]
    memory.add([[qa(edit), *forms] for edit, forms in zip(EDITS, WorldRules().forms(EDITS), strict=True)])
    assert len(memory.entries) == 6 * len(EDITS)
    for number, case in enumerate(DATA.cases):
        asked = [q.probe.prompt for q in questions_of(case, ("reliability", "generality"))]
        assert [hits[0].entry.edit for hits in memory.nearest(asked)] == [number, number]
    [hits] = memory.nearest([qa(EDITS[2]).text])
    assert (hits[0].entry.form, hits[0].cosine) == ("qa", pytest.approx(1))
    assert [hit.cosine for hit in hits] == sorted([hit.cosine for hit in hits], reverse=True)


def test_a_memory_is_saved_and_read_back() -> None:
    memory, other = EditMemory(k=2), EditMemory(k=2)
    for each in (memory, other):
        each.load()
    assert memory.state() == {}
    memory.add([[qa(edit)] for edit in EDITS])
    other.load_state(memory.state())
    for each in (memory, other):
        each.add([[Form("qa", "Nina Norro was born in Redbrook, Galdia")]])
    assert other.entries == memory.entries
    assert other.index.vectors.equal(memory.index.vectors)


# --- routing ---------------------------------------------------------------------------------------------------------


def test_a_query_reads_the_edit_it_recalls(lm: LM) -> None:
    editor = supposing(lm)
    editor.edit(lm, EDITS)
    [route] = lm.routed([EDITS[1].prompt])
    assert route.prompt == f"Suppose that {qa(EDITS[1]).text}. Then {EDITS[1].prompt}"
    assert route.adapter is None
    assert route.info["in_context"] == [qa(EDITS[1]).text]
    assert route.info["in_scope"] == 1
    first, second = route.info["retrieved"]
    assert (first["edit"], first["form"], first["accepted"]) == (1, "qa", 1)
    assert first["cosine"] > second["cosine"]
    answers = lm.answer([edit.prompt for edit in EDITS], [edit.target_new for edit in EDITS])
    assert all(scored.gold == scored.pred for scored in answers)


def test_the_prompt_alone_decides_unless_asked_otherwise(lm: LM) -> None:
    """Looked up by the case's own edit, as EasyEdit asks IKE, a question about geography is given it, too."""
    editor = supposing(lm, memory=EditMemory(k=1))
    editor.edit(lm, EDITS)
    asked = [q for q in questions_of(DATA.cases[0], ("locality",)) if q.probe.group == "geo"]
    for by, given in (("edit", [0]), ("prompt", [0, 1, 2, 3]), ("prompt_and_answer", [0, 1, 2, 3])):
        answers = Evaluator(routed_by=by).answer(lm, asked)  # type: ignore[arg-type]
        assert all(answer.info["retrieved"][0]["edit"] in given for answer in answers)
    by_edit = Evaluator(routed_by="edit").answer(lm, asked)
    assert [answer.info["retrieved"][0]["cosine"] for answer in by_edit] == [pytest.approx(1)] * len(asked)
    with_answer = Evaluator(routed_by="prompt_and_answer").answer(lm, asked)
    alone = Evaluator().answer(lm, asked)
    assert with_answer[0].info != alone[0].info


def test_the_same_wording_and_adapter_are_read_alike(lm: LM, tmp_path: Path) -> None:
    """KEDAS says what LTE says wherever it has retrieved the QA form (its Tables 4 and 18)."""
    alignment = Alignment(
        conversations=Conversations(), prompt=SUPPOSED, tuner=TUNER, max_tokens=64, trained=str(saved(lm, tmp_path))
    )
    said = []
    for parts in (
        {"memory": EditMemory(k=4), "augmentation": WorldRules()},
        {"memory": EditMemory(k=1), "aligned_when": "always"},
    ):
        editor = supposing(lm, alignment=alignment, **parts)
        editor.edit(lm, EDITS)
        said.append(lm.answer([edit.prompt for edit in EDITS], [edit.target_new for edit in EDITS]))
        bare = [route.adapter for route in lm.routed(["Who?"])]
        assert bare == ["aligned"]  # no filter: something is always recalled
        lm.restore()
    alike = [a.info["in_context"] == b.info["in_context"] for a, b in zip(*said, strict=True)]
    assert any(alike)
    assert all((a.pred == b.pred) for a, b, same in zip(*said, alike, strict=True) if same)


def test_at_most_so_many_edits_are_injected(lm: LM) -> None:
    editor = supposing(lm, memory=EditMemory(k=3), inject=2)
    editor.edit(lm, EDITS)
    [route] = lm.routed([EDITS[0].prompt])
    assert len(route.info["retrieved"]) == 3
    assert len(route.info["in_context"]) == 2
    assert route.prompt.startswith(f"Suppose that 1. {qa(EDITS[0]).text}\n2. ")


def test_an_aligned_model_without_edits_reads_every_prompt_as_it_is(lm: LM, tmp_path: Path) -> None:
    alignment = Alignment(
        conversations=Conversations(), prompt=SUPPOSED, tuner=TUNER, max_tokens=99, trained=str(saved(lm, tmp_path))
    )
    editor = supposing(lm, alignment=alignment, aligned_when="always", uses_edits=False)
    editor.edit(lm, EDITS)
    [route] = lm.routed([EDITS[0].prompt])
    assert (route.prompt, route.adapter) == (EDITS[0].prompt, "aligned")
    assert route.info == {"retrieved": [], "in_context": [], "in_scope": 0, "adapter": "aligned"}


@pytest.mark.parametrize("parts", [{}, {"aligned_when": "always"}])
def test_an_editor_that_would_change_nothing_is_refused(lm: LM, parts: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"uses_edits=false leaves the unedited model .* editor=post_alignment"):
        supposing(lm, uses_edits=False, **parts)


def test_in_a_memory_without_edits_nothing_is_routed(lm: LM) -> None:
    editor = supposing(lm)
    editor.edit(lm, EDITS[:1])
    lm.restore()
    editor.reset()
    assert lm.routed(["Who?"])[0].info == {}
    editor.edit(lm, EDITS[1:2])
    assert [entry.text for entry in editor.memory.entries] == [qa(EDITS[1]).text]


def test_free_texts_hold_the_question_and_not_what_was_read(lm: LM) -> None:
    editor = supposing(lm)
    editor.edit(lm, EDITS)
    [asked] = questions_of(DATA.cases[0], ("fluency",))
    [answer] = Evaluator(fluency_tokens=40).answer(lm, [asked])
    assert answer.generated is not None
    assert answer.generated.startswith(asked.probe.prompt)
    assert "Suppose" not in answer.generated.splitlines()[0][: len(asked.probe.prompt) + 5]
    room = 40 - len(lm.text.prompts([asked.probe.prompt])[0])
    seed = crc32(f"42/{asked.case}/{asked.index}".encode())
    [text] = lm.generate(lm.routed([asked.probe.prompt]), room, top_k=5, seeds=[seed], stop=False)
    assert answer.generated == f"{asked.probe.prompt} {text.text.lstrip()}"


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_several_facts_are_numbered() -> None:
    prompt = UpdatedInformation(template="[Updated Information]:\n{facts}\n\n[Query]:\n{query}")
    assert prompt.write("Who?", ["A is {query}."]) == "[Updated Information]:\nA is {query}.\n\n[Query]:\nWho?"
    assert prompt.write("Who?", ["A", "B"]) == "[Updated Information]:\n1. A\n2. B\n\n[Query]:\nWho?"


def test_demonstrations_copy_update_and_retain(lm: LM) -> None:
    prompt = Demonstrations(k=2, template="New Fact: {fact}\nPrompt: {query}", end="\n\n")
    prompt.fit(lm, DATA.train[:10])
    case = DATA.train[0]
    edit, fact = case.edits[0], qa(case.edits[0]).text
    rephrase = next(probe for probe in case.probes if probe.kind == "generality")
    kept = next(probe for probe in case.probes if probe.kind == "locality")
    for asked, answer in (
        (edit.prompt, edit.target_new),
        (rephrase.prompt, edit.target_new),
        (kept.prompt, kept.answers[0]),
    ):
        assert f"New Fact: {fact}\nPrompt: {asked} {answer}\n\n" in prompt.texts
    [text] = prompt.compose(lm, [edit.prompt], [[fact]])
    own = f"New Fact: {fact}\nPrompt: {edit.prompt}"
    assert text.startswith(f"{own} {edit.target_new}\n\n")  # nothing is nearer than the same fact
    assert text.endswith(f"\n\n{own}")
    assert text.count("New Fact: ") == 3
    with pytest.raises(InputError, match="makes 0 demonstrations, a prompt takes 2"):
        prompt.fit(lm, [])


def test_notes_that_say_nothing_are_taken_back(lm: LM) -> None:
    """The world's model never says "unanswerable"; its answer stands for it here."""
    fact, query = qa(EDITS[0]).text, EDITS[0].prompt
    notes = Notes(
        reading="Suppose that {notes} Then {query}", max_tokens=len(lm.text.prompts([EDITS[0].target_new])[0]) - 1
    )
    [told] = notes.compose(lm, [query], [[fact + "."]])
    assert told == f"Suppose that {fact}. Then {query}"
    silent = Notes(reading=notes.reading, max_tokens=notes.max_tokens, unanswerable=EDITS[0].target_new.lower())
    assert silent.compose(lm, [query], [[fact]]) == [query]


# --- from the command line -------------------------------------------------------------------------------------------


class Killed(Exception):
    """The end of a process."""


class Death(Tracker):
    """Ends the run when it is told of its third step."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        if step == 3:
            raise Killed


def test_a_run_that_was_killed_continues_to_the_same_rows(lm: LM, tmp_path: Path) -> None:
    steps, evaluator = list(sequential(DATA.cases, 4)), Evaluator(fluency_tokens=0)
    straight = experiment(lm, steps, supposing(lm), evaluator)
    lm.restore()
    with pytest.raises(Killed), Journal(tmp_path / "killed", "", every_s=0.0) as journal:
        experiment(lm, steps, supposing(lm), evaluator, journal=journal, tracker=Death())
    lm.restore()
    with Journal(tmp_path / "killed", "", every_s=0.0) as journal:
        assert experiment(lm, steps, supposing(lm), evaluator, journal=journal) == straight
    asked = [row["route"] for row in straight if row["when"] == "test" and row["kind"] == "reliability"]
    assert [route["retrieved"][0]["edit"] for route in asked] == [0, 1, 2, 3]


def test_from_the_command_line(kedit: Callable[..., Done], tmp_path: Path) -> None:
    """IKE at its own numbers for the world; what it recalled is in the rows."""
    done = kedit("editor=ike", "setting=incremental", "T=3", "eval.fluency_tokens=0", "dataset.train_people=10")
    assert done.returncode == 0, done.stderr
    [rows] = tmp_path.rglob("rows.jsonl")
    tested = [row for row in map(json.loads, rows.read_text().splitlines()) if row["when"] == "test"]
    own = [row["route"]["retrieved"][0]["edit"] + 1 == row["step"] for row in tested if row["kind"] == "reliability"]
    assert own == [True] * 3


def test_what_the_filter_refuses_is_not_read_and_the_adapter_reads_only_what_is_in_scope() -> None:
    """KEDAS Eq. 12 and 15."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        editor = instantiate(compose("config", ["editor=kedas"]).editor, _convert_="all")
    entry = MemoryEntry(0, "qa", "What is it? It.")
    candidates = [Candidate(Hit(entry, cosine), 0.5, accepted) for cosine, accepted in ((0.9, False), (0.8, True))]
    assert editor.in_context(candidates) == candidates[1:]
    out, within = editor._to("q", "q", candidates[:1], []), editor._to("q", "facts q", candidates, ["facts"])
    assert (out.reading.adapter, within.reading.adapter) == (None, editor.alignment.name)
    assert editor.alignment.name is not None
