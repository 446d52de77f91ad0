"""What hypernetworks and prompt generators learn from: training cases of every form, and what they lack."""

from collections import Counter
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import SHAPES
from test_hypernetwork import DATA, PLAIN, hypernetwork
from transformers import AutoModelForCausalLM

from kedit import world
from kedit.cases import Case, Edit, Probe
from kedit.common.errors import InputError
from kedit.data import counterfact, knowedit, zsre_mend
from kedit.data.records import read_records
from kedit.editors.training.examples import counts, fitting, split, training_edits
from kedit.lm import LM

ANN = Case(
    "ann",
    (Edit("Ann was born in", "Rome", "Ann", "Oslo"),),
    (
        Probe("reliability", "Ann was born in", ("Rome",)),
        Probe("generality", "Ann's birthplace is", ("Rome",)),
        Probe("locality", "Ann works for", ("Crown", "the Crown")),
        Probe("neighborhood", "Bob was born in", ("Oslo",)),
    ),
)
BARE = Case("bare", (Edit("Bob was born in", "Bonn", "Bob", "Riga"),), (Probe("reliability", "Bob ...", ("Bonn",)),))
TWO = Case("two", (Edit("Cid is", "old"), Edit("Dan is", "new")), (Probe("generality", "Cid and Dan", ("x",)),))


def test_what_the_data_lacks_is_replaced_and_counted() -> None:
    ann, bare, *two = training_edits([ANN, BARE, TWO])
    assert ann.rephrased == [Edit("Ann's birthplace is", "Rome")]
    assert ann.kept == [Edit("Ann works for", "Crown")]
    assert bare.rephrased == []
    assert set(bare.kept) == {Edit("Ann was born in", "Oslo"), Edit("Cid is", "old"), Edit("Dan is", "new")}
    assert [one.edit.prompt for one in two] == ["Cid is", "Dan is"]
    assert all(not one.rephrased and "Cid is" not in [k.prompt for k in one.kept] for one in two)
    assert counts([ann, bare, *two], [ANN, BARE, TWO]) == {
        "edits": 4,
        "without a rephrased prompt (asked in their own words)": 3,
        "without a locality question (other edits' prompts instead)": 3,
    }
    with pytest.raises(InputError, match=r"the training split has 1 edits"):
        training_edits([ANN])


def test_whole_cases_are_held_out() -> None:
    edits = training_edits(world.more_training(DATA.train, draws=3))
    learnt, held = split(edits, 0.25, seed=0)
    assert len(held) == 18  # 6 of 24 people, each with 3 edits
    assert not {one.case for one in learnt} & {one.case for one in held}
    assert split(edits, 0.25, seed=0) == (learnt, held)
    assert [len(part) for part in split(training_edits([ANN, BARE]), 0.01, 0)] == [1, 1]


FILES = {
    "zsre_mend/zsre_mend_train_1k.json": zsre_mend,
    "counterfact/counterfact-train.json": counterfact,
    "knowedit/train_cf.json": knowedit,
    "knowedit/recent_train.json": knowedit,
    "knowedit/wikibio-train-all.json": knowedit,
}


PLACES = [*zip(FILES, SHAPES, strict=False), ("zsre_mend/zsre_mend_train_1k.json", "gptj")]


@pytest.mark.parametrize(("file", "shape"), PLACES)
def test_real_training_splits_are_learnt_from(file: str, shape: str, lm: LM, test_data: Path) -> None:
    """20 records each, on random models; KnowEdit's have no rephrased prompts, and some are longer than the context."""
    torch.manual_seed(0)
    model = LM(AutoModelForCausalLM.from_config(deepcopy(SHAPES[shape])), lm.text.tokenizer)
    dropped: Counter[str] = Counter()
    records = list(read_records(test_data / file, "dataset.train_path"))[:20]
    cases = [FILES[file].parse(record, f"{i}", dropped) for i, record in enumerate(records)]
    cases = [case for case in cases if case.edits[0].target_new.strip()]
    made = hypernetwork({"rank": 2}, {"edits_per_update": 2, "edits": 4, "at_once": 1})
    made.fit(model, cases)
    report = made.fit_report()
    lacks = report["data"].get("without a rephrased prompt (asked in their own words)", 0)
    long = report["data"].get("longer than the model's context (left out)", 0)
    assert report["data"]["edits"] == len(cases) - long
    assert lacks == (len(cases) - long if "knowedit" in file else 0)
    for one in fitting(model, training_edits(cases))[:3]:
        assert made.edit(model, [one.edit])["steps"] == 1
        model.restore()


def test_training_people_can_be_edited_more_than_once(lm: LM) -> None:
    made = hypernetwork(PLAIN, more_training=partial(world.more_training, draws=2))
    made.fit(lm, DATA.train[:6])
    assert made.fit_report()["data"]["edits"] == 12
