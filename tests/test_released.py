"""What differs between KEDAS's paper and its authors' code: how edits are found, judged and read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from kedit import world
from kedit.cases import Case, Edit, Probe
from kedit.common.errors import InputError
from kedit.data import knowedit
from kedit.data.files import parse_file
from kedit.editors.extra_examples import Paraphrases, known_facts
from kedit.editors.incontext import InContext
from kedit.editors.incontext.augmentation import qa, with_augmentations
from kedit.editors.incontext.augmentation.world_rules import WorldRules
from kedit.editors.incontext.demonstrations import Demonstrations
from kedit.editors.incontext.edit_memory import EditMemory, Hit, MemoryEntry
from kedit.editors.incontext.filter import Filter
from kedit.editors.incontext.filter_pairs import FilterPair, FilterPairs
from kedit.editors.incontext.filter_training import FilterTraining, score
from kedit.editors.incontext.prompts import ConstantPrefix, UpdatedInformation
from kedit.lm import LM
from kedit.lm.sentence_encoder import MINILM, source

DATA = world.cases(edits=4, limit=4, seed=1, train=True)
EDITS = [case.edits[0] for case in DATA.cases]
PROMPT = UpdatedInformation(template="[Updated Information] {facts} [Question] {query}")
PAIRS = [FilterPair(f"Who is {i}?", f"Who is {i}? Ann {i}", i % 3 > 0, "edit", str(i // 2)) for i in range(40)]
QUICK = FilterTraining(lr=1e-3, epochs=3, batch_size=8, max_length=32, validation=0.25)


# --- finding and judging ---------------------------------------------------------------------------------------------


def test_an_edit_is_judged_once_at_its_nearest_string_and_as_its_qa_form() -> None:
    memory = EditMemory(k=4)
    memory.load()
    memory.add(with_augmentations(EDITS, WorldRules()))
    entries = {(entry.edit, entry.form): entry for entry in memory.entries}
    other = next(form for edit, form in entries if edit == 0 and form != "qa")
    hits = [
        Hit(entries[0, other], 0.9),
        Hit(entries[1, "qa"], 0.8),
        Hit(entries[2, "qa"], 0.8),
        Hit(entries[0, "qa"], 0.7),
    ]
    found = memory.by_edit(hits)
    assert [(hit.entry.edit, hit.entry.form, hit.cosine) for hit in found] == [
        (0, "qa", 0.9),
        (2, "qa", 0.8),  # as near as edit 1, and newer
        (1, "qa", 0.8),
    ]
    again = EditMemory(k=4)
    again.load_state(memory.state())
    assert again.by_edit(hits) == found


def test_an_edit_is_found_by_its_prompt_alone(lm: LM) -> None:
    for found_by, cosine in (("prompt", 1.0), ("wording", 0.95)):
        editor = InContext(memory=EditMemory(k=1), prompt=PROMPT, found_by=found_by)  # type: ignore[arg-type]
        editor.fit(lm, ())
        editor.edit(lm, EDITS)
        [[candidate]] = editor.retrieve([EDITS[1].prompt])
        assert candidate.hit.entry == MemoryEntry(1, "qa", qa(EDITS[1]).text)
        assert (candidate.hit.cosine >= cosine - 1e-5) == (found_by == "prompt")
        lm.restore()


def lte() -> InContext:
    return InContext(memory=EditMemory(k=1), prompt=PROMPT, found_by="prompt", aligned_when="always")


def released() -> InContext:
    return InContext(memory=EditMemory(k=12), prompt=PROMPT, judged="edit", augmentation=WorldRules())


def read_alike(lm: LM, edits: Sequence[Edit], editors: Sequence[InContext]) -> tuple[int, int]:
    """(edits whose own statement all editors put before their prompt, those of them that all read alike)."""
    prompts = []
    for editor in editors:
        editor.fit(lm, ())
        editor.edit(lm, edits)
        routes = lm.routed([edit.prompt for edit in edits])
        own = [route.info["in_context"] == [qa(edit).text] for route, edit in zip(routes, edits, strict=True)]
        prompts.append([route.prompt if mine else "" for route, mine in zip(routes, own, strict=True)])
        lm.restore()
        editor.reset()
    both = [texts for texts in zip(*prompts, strict=True) if all(texts)]
    return len(both), sum(len(set(texts)) == 1 for texts in both)


def test_kedas_released_reads_what_lte_reads_on_the_world(lm: LM) -> None:
    assert read_alike(lm, EDITS, [lte(), released()]) == (4, 4)


def test_kedas_released_reads_what_lte_reads_on_real_records(lm: LM, test_data: Path) -> None:
    from collections import Counter

    cases = parse_file(knowedit.parse, test_data / "knowedit" / "ZsRE-test-all.json", True, Counter())[:40]
    plain = InContext(memory=EditMemory(k=12), prompt=PROMPT, judged="edit")
    both, alike = read_alike(lm, [case.edits[0] for case in cases], [lte(), plain])
    assert alike == both >= 36


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_erens_released_prefix_tells_nothing_of_the_edits(lm: LM) -> None:
    prompt = ConstantPrefix(prefix="Read this and answer the question.\n\n{context[0]}\n\n")
    editor = InContext(memory=EditMemory(k=1), prompt=prompt)
    editor.fit(lm, ())
    editor.edit(lm, EDITS)
    routes = lm.routed([edit.prompt for edit in EDITS])
    assert [route.prompt for route in routes] == [prompt.prefix + edit.prompt for edit in EDITS]
    assert all(edit.target_new not in route.prompt for route, edit in zip(routes, EDITS, strict=True))


def test_ikes_own_query_may_have_another_template(lm: LM) -> None:
    plain = Demonstrations(k=2, template="New Fact: {fact}\nPrompt: {query}", end="\n\n")
    other = Demonstrations(k=2, template=plain.template, end=plain.end, asked="New Fact: {fact}\nPrompt:{query}")
    written = []
    for each in (plain, other):
        each.fit(lm, DATA.train)
        written += each.compose(lm, ["Who?"], [["Ann is here."]])
    assert written[0].endswith("\n\nNew Fact: Ann is here.\nPrompt: Who?")
    assert written[1] == written[0].removesuffix(" Who?") + "Who?"


# --- the filter ------------------------------------------------------------------------------------------------------


@pytest.fixture
def encoders(tmp_path: Path) -> dict[str, Path]:
    """A tiny BERT without a head, and one with two classes, as the authors' training saves it."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(source(MINILM))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    settings = BertConfig(vocab_size=len(tokenizer), num_labels=2, **sizes)
    for name, model in (("base", BertModel(settings)), ("best_model", BertForSequenceClassification(settings))):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return {name: tmp_path / name for name in ("base", "best_model")}


def test_a_checkpoint_of_two_classes_is_read(encoders: dict[str, Path]) -> None:
    """Accepted above 0.5 is the authors' argmax."""
    two_classes = encoders["best_model"]
    training = FilterTraining(lr=1e-3, epochs=1, batch_size=2, max_length=16, edit_first=True, max_chars=12)
    judge = Filter(model=MINILM, pairs=FilterPairs(), training=training, trained=str(two_classes))
    pairs = [("who is ann ?", "ann is cat ann is cat"), ("cat ?", "who is ann ?")]
    tokenizer = AutoTokenizer.from_pretrained(two_classes)
    model = BertForSequenceClassification.from_pretrained(two_classes).eval()
    read = tokenizer([s[:12] for _, s in pairs], [q[:12] for q, _ in pairs], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**read).logits
    assert judge(pairs) == pytest.approx(logits.softmax(-1)[:, 1].tolist(), abs=1e-5)
    assert [p > 0.5 for p in judge(pairs)] == [bool(row.argmax()) for row in logits]


def test_pairs_are_cut_and_ordered_as_they_are_said_to_be() -> None:
    training = FilterTraining(lr=1e-3, epochs=1, batch_size=2, max_length=16, edit_first=True, max_chars=5)
    assert training.read("the query", "the stored edit") == ("the s", "the q")
    assert QUICK.read("the query", "the stored edit") == ("the query", "the stored edit")


def test_pairs_are_held_out_as_sklearn_splits_them() -> None:
    training = FilterTraining(lr=1e-3, epochs=1, batch_size=2, max_length=16, held_out="pairs", seed=42)
    learnt, held = training.split(PAIRS)
    assert [PAIRS.index(pair) for pair in held] == np.random.RandomState(42).permutation(40)[:4].tolist()
    assert len(learnt) == 36


@pytest.mark.parametrize("classes", [1, 2])
def test_the_best_epoch_is_kept(
    classes: int, encoders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained far too long, the last epoch is worse on what is held out than the one that is kept."""
    from kedit.editors.incontext.filter_training import BestEpoch, load_encoder

    seen = []
    ended = BestEpoch.on_epoch_end

    def watched(self: BestEpoch, *args: object, **kwargs: object) -> None:
        ended(self, *args, **kwargs)  # type: ignore[arg-type]
        seen.append(self.lowest)

    monkeypatch.setattr(BestEpoch, "on_epoch_end", watched)
    training = FilterTraining(
        lr=0.1,
        epochs=3,
        batch_size=8,
        max_length=32,
        validation=0.25,
        best_epoch=True,
        classes=classes,  # type: ignore[arg-type]
    )
    folder = tmp_path / "learnt"
    folder.mkdir()
    training.run(str(encoders["base"]), PAIRS, folder)
    held = training.split(PAIRS)[1]
    chances = torch.tensor(score(load_encoder(str(folder)), [training.read(p.query, p.stored) for p in held], 8))
    kept = torch.nn.functional.binary_cross_entropy(chances, torch.tensor([float(p.relevant) for p in held])).item()
    assert len(seen) == 3
    assert kept == pytest.approx(min(seen), abs=1e-4)


def test_the_best_epoch_needs_something_held_out() -> None:
    with pytest.raises(InputError, match="best_epoch needs held-out pairs"):
        FilterTraining(lr=1e-3, epochs=1, batch_size=2, max_length=16, validation=0.0, best_epoch=True)


# --- standard fine-tuning --------------------------------------------------------------------------------------------


def test_the_first_of_given_sentences_are_taken(lm: LM) -> None:
    part = Paraphrases(n=2, prefixes=["One. ", "Two. ", "Three. "])
    part.fit(lm, ())
    assert [edit.prompt for edit in part.of(Edit("Ann is", "here"))] == ["One. Ann is", "Two. Ann is"]


def test_long_answers_are_cut_to_words() -> None:
    train = [Case("f-0", (Edit("Ann is", "a b c  d", "Ann"),), (Probe("generality", "x", ("y",)),))]
    assert [fact.target_new for fact in known_facts(train, 1, 3)] == ["a b c"]
    assert [fact.target_new for fact in known_facts(train, 1, 4)] == ["a b c  d"]
