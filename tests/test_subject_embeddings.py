"""SWEA⊕OS: a subject is found by its tokens however it is read, and only its embeddings change."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from kedit import world
from kedit.cases import Edit
from kedit.common.errors import InputError
from kedit.editors.extra_examples import RandomFacts
from kedit.editors.swea import SubjectEmbeddings
from kedit.editors.swea.embedding_deltas import EmbeddingDeltas, lengths, longest
from kedit.lm import LM
from kedit.loop.journal import Journal, load_checkpoint

PROMPTS = ["Lucy Kelden was born in", "Where was Lucy Kelden born?", "The occupation of Lena Ostker is", "Nina"]
ANSWERS = ["Eastford, Beloria", "Velport", "glass manager", "Blue Bank Systems"]


def deltas(lm: LM, *subjects: str, size: float = 3.0) -> dict[tuple[int, ...], torch.Tensor]:
    special = len(lm.text.special_ids)
    keys = [tuple(ids[special:]) for ids in lm.text.prompts(list(subjects))]
    return {key: size * torch.randn(len(key), 64, generator=torch.Generator().manual_seed(0)) for key in keys}


def install(lm: LM, known: dict[tuple[int, ...], torch.Tensor], everywhere: bool = False) -> None:
    hook = EmbeddingDeltas(everywhere)
    hook.set(known)
    lm.intervene(lm.embedding_module, hook)


def scores(lm: LM, **attributes: Any) -> list[list[float]]:
    for name, value in attributes.items():
        setattr(lm, name, value)
    return [s.logprob for s in lm.answer(PROMPTS, ANSWERS)]


def embedded(lm: LM, prompt: str, known: dict[tuple[int, ...], torch.Tensor]) -> torch.Tensor:
    """The prompt's embeddings with what should be added, by hand."""
    [ids] = lm.text.prompts([prompt])
    values = lm.embeddings(ids).clone()
    for key, delta in known.items():
        for at in range(len(ids)):
            if tuple(ids[at : at + len(key)]) == key:
                values[at : at + len(key)] += delta
    return values[None]


def test_a_known_subject_is_altered_in_scoring_whatever_the_batch(shaped: LM) -> None:
    before = scores(shaped, token_budget=1)
    known = deltas(shaped, "Lucy Kelden")
    install(shaped, known)
    one_by_one = scores(shaped, token_budget=1)
    assert [then == now for then, now in zip(before, one_by_one, strict=True)] == [False, False, True, True]
    for side in ("left", "right"):
        for now, alone in zip(scores(shaped, token_budget=512, padding_side=side), one_by_one, strict=True):
            assert now == pytest.approx(alone, abs=1e-4)
    logits = shaped.model(inputs_embeds=embedded(shaped, PROMPTS[0], known)).logits[0, -1].log_softmax(-1)
    [pair] = shaped.text.pairs(PROMPTS[:1], ANSWERS[:1])
    assert float(logits[pair.answer[0]]) == pytest.approx(one_by_one[0][0], abs=1e-4)
    shaped.restore()
    assert scores(shaped, token_budget=1) == before


def test_a_continuation_reads_the_altered_prompt_and_nothing_else(shaped: LM) -> None:
    """With a cache, padded: as the whole text read anew for every token, with the prompt's embeddings altered."""
    known = deltas(shaped, "Lucy Kelden", "Nina")
    install(shaped, known)
    generated = [g.text for g in shaped.generate(PROMPTS, 5, stop=False)]
    for prompt, text in zip(PROMPTS, generated, strict=True):
        values, ids = embedded(shaped, prompt, known), []
        for _ in range(5):
            ids.append(int(shaped.model(inputs_embeds=values).logits[0, -1].argmax()))
            values = torch.cat([values, shaped.embeddings(ids[-1:])[None]], dim=1)
        assert shaped.text.decode(ids) == text


def test_of_several_known_subjects_the_longest_is_altered_and_answers_are_not_searched(shaped: LM) -> None:
    both = deltas(shaped, "Lucy", "Lucy Kelden")
    short, long = ({key: both[key]} for key in sorted(both, key=len))
    assert altered(shaped, long, "Lucy Kelden was born in") == altered(shaped, both, "Lucy Kelden was born in")
    assert altered(shaped, short, "Lucy was born in") == altered(shaped, both, "Lucy was born in")
    known = deltas(shaped, "Velport")
    plain = [s.logprob for s in shaped.answer(["Nina lives in"], ["Velport, Norland"])]
    install(shaped, known)
    assert [s.logprob for s in shaped.answer(["Nina lives in"], ["Velport, Norland"])] == plain
    shaped.restore()
    install(shaped, known, everywhere=True)
    assert [s.logprob for s in shaped.answer(["Nina lives in"], ["Velport, Norland"])] != plain


def altered(lm: LM, known: dict[tuple[int, ...], torch.Tensor], prompt: str) -> list[list[float]]:
    install(lm, known)
    found = [s.logprob for s in lm.answer([prompt], ["Velport"])]
    lm.restore()
    return found


def test_a_sequence_is_found_where_it_stands_first() -> None:
    keys = [(1, 2), (1, 2, 3), (4,)]
    assert longest([4, 1, 2, 1, 2, 3, 1, 2, 3], keys, lengths(keys)) == (3, (1, 2, 3))
    assert longest([0, 4, 1], keys, lengths(keys)) == (1, (4,))
    assert longest([1, 3], keys, lengths(keys))[1] == ()


def test_layers_below_an_edit_are_not_taken_from_before_it(lm: LM) -> None:
    """What was kept of a question for another editor is not used once embeddings are altered."""
    asked = [["Lucy Kelden was born in"], ["Velport"]]
    lm.cache_lower_layers([lm.anatomy.mlp_out.format(3) + ".weight"], *asked)
    before = lm.answer(*asked)
    [ids] = lm.text.prompts(["Lucy"])
    install(lm, {tuple(ids[-1:]): torch.ones(1, 128)})
    assert lm.answer(*asked) != before
    lm.cache_lower_layers([])


# --- the editor ------------------------------------------------------------------------------------------------------

EDITS = [case.edits[0] for case in world.cases(edits=4, limit=4, seed=1).cases]


NUMBERS: dict[str, Any] = {
    "lr": 0.02,
    "steps": 25,
    "kl_factor": 0.2,
    "weight_decay": 0.3,
    "clamp_norm_factor": 1.0,
    "stop": 0.8,
    "suppression": 0.5,
    "threshold": 0.35,
    "points": 20,
}


def made(**given: Any) -> SubjectEmbeddings:
    return SubjectEmbeddings(**NUMBERS | given)


def nll(lm: LM, edits: Sequence[Edit]) -> list[float]:
    return [-sum(s.logprob) for s in lm.answer([e.prompt for e in edits], [e.target_new for e in edits])]


def test_no_weight_changes_and_restore_forgets(lm: LM) -> None:
    before, weights = nll(lm, EDITS), {k: v.clone() for k, v in lm.model.state_dict().items()}
    editor = made()
    editor.edit(lm, EDITS[:2])
    assert all(now < then for now, then in zip(nll(lm, EDITS)[:2], before[:2], strict=True))
    assert all(torch.equal(value, weights[name]) for name, value in lm.model.state_dict().items())
    assert list(lm.model.state_dict()) == list(weights)
    assert lm.changed == [lm.embedding_module]
    lm.restore()
    assert nll(lm, EDITS) == before


def test_subjects_learnt_together_are_as_if_learnt_one_by_one(lm: LM) -> None:
    together, alone = made(steps=5), made(steps=5)
    together.edit(lm, EDITS)
    lm.restore()
    for edit in EDITS:
        alone.edit(lm, [edit])
    for key, delta in alone._deltas.items():
        assert torch.allclose(together._deltas[key], delta, atol=1e-4 * float(delta.norm()))


def test_a_subject_keeps_its_earlier_facts(lm: LM) -> None:
    """Its δ is learnt anew from all of them; a prompt that is edited again has its last answer."""
    edit = EDITS[0]
    second = Edit(f"The favourite dish of {edit.subject} is", "fried trout", edit.subject)
    editor, at_once = made(), made()
    for each in (Edit(edit.prompt, "Velport", edit.subject), edit, second):
        editor.edit(lm, [each])
    after = nll(lm, [edit, second])
    lm.restore()
    at_once.edit(lm, [edit, second])
    assert nll(lm, [edit, second]) == pytest.approx(after, rel=1e-3)
    assert len(editor._deltas) == 1


def test_a_failed_edit_is_forgotten(lm: LM) -> None:
    editor = made()
    editor.edit(lm, EDITS[:1])
    before, learnt = nll(lm, EDITS), editor.state()
    with pytest.raises(FloatingPointError), lm.transaction():
        made(weight_decay=float("nan")).edit(lm, EDITS[1:2])
    editor.load_state(lm, learnt)
    assert nll(lm, EDITS) == before


def test_the_memory_of_subjects_comes_back_from_a_journal(lm: LM, tmp_path: Path) -> None:
    editor, again = made(steps=3), made(steps=3)
    with Journal(tmp_path, "config") as journal:
        journal.resume(lm, editor)
        editor.edit(lm, EDITS[:2])
        journal.write({"step": 1}, [])
        journal.commit(lm, editor, now=True)
    edited = nll(lm, EDITS)
    lm.restore()
    assert load_checkpoint(tmp_path, lm, again) == 1
    assert nll(lm, EDITS) == edited
    third = Edit(f"The favourite dish of {EDITS[0].subject} is", "fried trout", EDITS[0].subject)
    again.edit(lm, [third])
    continued = nll(lm, [EDITS[0], third])
    lm.restore()
    editor.load_state(lm, editor.state())
    editor.edit(lm, [third])
    assert nll(lm, [EDITS[0], third]) == continued


def test_suppression_takes_away_what_the_old_answer_is_owed_to(lm: LM) -> None:
    """Half the embedding in the dimensions above the threshold, nothing elsewhere."""
    with_it, without = made(), made(suppression=0.0)
    with_it.edit(lm, EDITS[:1])
    lm.restore()
    without.edit(lm, EDITS[:1])
    for key, delta in without._deltas.items():
        lost, own = delta - with_it._deltas[key], lm.embeddings(key)
        taken = lost.abs() > 1e-6
        assert 0 < int(taken.sum()) < taken.numel() / 2
        assert torch.allclose(lost[taken], 0.5 * own[taken], atol=1e-5)


def test_each_spelling_of_a_subject_is_learnt(shaped: LM) -> None:
    """GPT-2's tokenizer spells the first word of a text differently from the same word behind a blank."""
    shaped.text.tokenizer = gpt2_like(shaped)
    editor = made(steps=2, context_templates=["{}", "It is said. {}"])
    editor.edit(shaped, [Edit("Lucy Kelden was born in", "Velport", "Lucy Kelden")])
    assert {shaped.text.decode(key) for key in editor._deltas} == {"Lucy Kelden", " Lucy Kelden"}
    learnt = editor._deltas.values()
    assert all(float(delta.norm()) > 0 for delta in learnt)


def gpt2_like(lm: LM) -> Any:
    tokenizer = deepcopy(lm.text.tokenizer)
    tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return tokenizer


def test_random_facts_do_not_touch_an_edited_subject(lm: LM) -> None:
    data = world.cases(edits=4, limit=4, seed=1, train=True)
    editor = made(examples={"rand": RandomFacts(n=2)}, steps=2)
    editor.fit(lm, data.train)
    editor.edit(lm, EDITS[:1])
    assert len(editor._deltas) == 3
    clash = Edit(EDITS[0].prompt, EDITS[0].target_new, EDITS[0].subject)
    editor.examples["rand"].known = [clash, clash]  # type: ignore[attr-defined]
    editor.edit(lm, EDITS[1:2])
    assert len(editor._deltas) == 4


def test_a_prompt_without_the_subject_is_refused(lm: LM) -> None:
    with pytest.raises(InputError, match="'Lucy' is not in the prompt"):
        made().edit(lm, [Edit("Nina was born in", "Velport", "Lucy")])
