"""Real records of every benchmark through every editor, on small random models of two architectures."""

import sys
from copy import deepcopy

import pytest
import torch
from conftest import SHAPES, TESTS
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from transformers import AutoModelForCausalLM

from kedit.data import Dataset, counterfact, knowedit, load, zsre_mend
from kedit.editors import Editor
from kedit.lm import LM
from kedit.run import ROOT

FILES = {
    "zsre": knowedit,
    "wikibio": knowedit,
    "wikidata_recent": knowedit,
    "wikidata_counterfact": knowedit,
    "counterfact_rome": counterfact,
    "zsre_mend": zsre_mend,
}
EDITORS = [path.stem for path in sorted((ROOT / "conf/editor").glob("*.yaml"))]
CORPUS = TESTS / "data" / "LICENCES.md"  # any text will do


def records(name: str) -> Dataset:
    path = str(TESTS / "data" / f"{name}.json")
    return load(FILES[name].parse, path=path, train_path=path, train_overlap="keep", train=True)


def editor_of(name: str) -> Editor:
    """As for a model that nobody has tuned anything for."""
    chosen = [f"editor={name}", "model=local", "model.path=x", "dataset=zsre"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", chosen).editor
    if cfg.get("texts"):
        cfg.texts.source = str(CORPUS)
    return instantiate(cfg, _convert_="all")


@pytest.fixture(params=["llama", "gpt2"])
def random_lm(request: pytest.FixtureRequest, _world_lm: LM) -> LM:
    config = deepcopy(SHAPES[request.param])
    config.max_position_embeddings = 1024
    torch.manual_seed(0)
    return LM(AutoModelForCausalLM.from_config(config), _world_lm.text.tokenizer)


def nll(lm: LM, prompt: str, answer: str) -> float:
    [scored] = lm.answer([prompt], [answer])
    return -sum(scored.logprob) / len(scored.logprob)


def better(lm: LM, editor: Editor, dataset: Dataset, rows: int, *, restore: bool) -> int:
    """How many of the first `rows` edits made their answer likelier, or had nothing to learn."""
    count = 0
    for step, case in enumerate(dataset.cases[:rows]):
        [edit] = case.edits
        before = nll(lm, edit.prompt, edit.target_new)
        torch.manual_seed(step)
        cost = editor.edit(lm, [edit])
        count += nll(lm, edit.prompt, edit.target_new) < before or cost["steps"] == 0
        if restore:
            lm.restore()
            editor.reset()
    assert all(bool(p.isfinite().all()) for p in lm.model.parameters())
    return count


def check(lm: LM, name: str, rows: int) -> None:
    pristine = {key: value.clone() for key, value in lm.model.state_dict().items()}
    for file in FILES:
        dataset, editor = records(file), editor_of(name)
        torch.manual_seed(0)
        editor.fit(lm, dataset.train)
        for restore in (True, False):
            count = better(lm, editor, dataset, rows, restore=restore)
            sys.stdout.write(f"{name} {file} {'single' if restore else 'sequential'}: {count} of {rows}\n")
            assert count >= 0.9 * rows
        lm.restore()
        editor.reset()
        now = lm.model.state_dict()
        assert list(now) == list(pristine)
        assert all(torch.equal(now[key], value) for key, value in pristine.items())


@pytest.mark.parametrize("name", EDITORS)
def test_three_records_of_each_file(random_lm: LM, name: str) -> None:
    check(random_lm, name, 3)


@pytest.mark.acceptance
@pytest.mark.parametrize("name", EDITORS)
def test_twenty_records_of_each_file(random_lm: LM, name: str) -> None:
    check(random_lm, name, 20)
