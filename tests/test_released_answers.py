"""What kedas_released and lte answer to the same edits, and how kedas and kedas_released find them."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from test_records import FILES, editor_of, random_lm, records

from kedit import world
from kedit.cases import Case
from kedit.editors.incontext import InContext
from kedit.editors.incontext.augmentation import qa
from kedit.editors.incontext.augmentation.world_rules import WorldRules
from kedit.editors.incontext.edit_memory import EditMemory
from kedit.editors.incontext.prompts import UpdatedInformation
from kedit.lm import LM, Scored

DATA = world.cases(edits=4, limit=4, seed=1, train=True)
PROMPT = UpdatedInformation(template="[Updated Information] {facts} [Question] {query}")
Told = tuple[Scored, Mapping[str, Any]]  # what is answered to an edit's prompt, and how it was routed


def built(lm: LM, name: str) -> InContext:
    return editor_of(name, lm, {"filter.training.max_length": 32, "alignment.tuner.max_steps": 1})  # type: ignore[return-value]


def answered(lm: LM, editor: InContext, cases: Sequence[Case]) -> list[Told]:
    """To the edits' own prompts, after all edits one by one."""
    edits = [edit for case in cases for edit in case.edits]
    for edit in edits:
        editor.edit(lm, [edit])
    said = lm.answer([edit.prompt for edit in edits], [edit.target_new for edit in edits])
    lm.restore()
    editor.reset()
    return [(scored, scored.info) for scored in said]


def own(told: Sequence[Told], cases: Sequence[Case]) -> list[bool]:
    """Was the case's own statement, and nothing else, before its prompt?"""
    return [info["in_context"] == [qa(case.edits[0]).text] for (_, info), case in zip(told, cases, strict=True)]


def same_answer(one: Told, other: Told) -> bool:
    return (one[0].pred, one[1]["adapter"]) == (other[0].pred, other[1]["adapter"]) and one[0].logprob == pytest.approx(
        other[0].logprob, abs=1e-4
    )


ALL = [
    pytest.param("zsre"),
    *(pytest.param(name, marks=pytest.mark.acceptance) for name in ("world", *list(FILES)[1:])),
]


@pytest.mark.parametrize("data", ALL)
def test_kedas_released_answers_what_lte_answers_where_both_read_the_edits_own_statement(data: str, lm: LM) -> None:
    """In sequential mode; the world by its own model, real records by a random one. The filter, which has hardly
    learnt, accepts half of the own statements."""
    small, cases = (lm, DATA.cases) if data == "world" else (random_lm("llama", lm), records(data)[:16])
    lte, released = (built(small, name) for name in ("lte", "kedas_released"))
    assert released.filter is not None
    first = [info["retrieved"] for _, info in answered(small, released, cases)]
    chances = [max([hit["probability"] for hit in hits if hit["edit"] == i] or [0.0]) for i, hits in enumerate(first)]
    released.filter.threshold = sorted(chances)[len(cases) // 2]
    ours, theirs = answered(small, released, cases), answered(small, lte, cases)
    read = [a and b for a, b in zip(own(ours, cases), own(theirs, cases), strict=True)]
    alike = list(map(same_answer, ours, theirs))
    sys.stdout.write(f"{data}: {sum(read)} of {len(cases)} edits both read; {sum(alike)} of all are answered alike\n")
    assert all(same for same, both in zip(alike, read, strict=True) if both)
    assert 0 < sum(read) < len(cases)


def test_kedas_judges_strings_and_kedas_released_each_edit_once(lm: LM) -> None:
    """4 strings in any wording; or 12, of which each edit counts at its nearest, as its QA form."""
    found = {}
    for name, k, judged in (("kedas", 4, "string"), ("kedas_released", 12, "edit")):
        editor = InContext(memory=EditMemory(k=k), prompt=PROMPT, judged=judged, augmentation=WorldRules())  # type: ignore[arg-type]
        editor.fit(lm, ())
        found[name] = [info["retrieved"] for _, info in answered(lm, editor, DATA.cases)]
    assert all(len(hits) == 4 for hits in found["kedas"])
    assert {hit["form"] for hits in found["kedas"] for hit in hits} > {"qa"}
    for hits in found["kedas_released"]:
        edits = [hit["edit"] for hit in hits]
        assert len(set(edits)) == len(edits)
        assert {hit["form"] for hit in hits} == {"qa"}
