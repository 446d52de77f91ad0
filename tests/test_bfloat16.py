"""Editors on a model in bfloat16: an edit can be made, and a run that continues has what it had."""

import pytest
import torch
from test_contract import built, edit, equal, learnt, nll, random_lm

from kedit.lm import LM


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["lora", "adalora", "kn", "ft_m", "kdpo"])
def test_a_saved_state_is_loaded_as_it_was(name: str, shape: str, lm: LM) -> None:
    lm = random_lm(shape, lm)
    lm.model.to(torch.bfloat16)
    editor = built(name, lm, ["model=local", "model.path=x", "dataset=zsre"])
    edit(lm, editor, 0)
    before, answers = learnt(lm, editor), nll(lm)
    model, own = {key: value.clone() for key, value in lm.state().items()}, editor.state()
    lm.restore()
    editor.reset()
    lm.load_state(model)
    editor.load_state(lm, own)
    assert equal(learnt(lm, editor), before)
    assert nll(lm) == answers
