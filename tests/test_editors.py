"""The contract of every editor, parametrised over conf/editor: a new yaml is tested without a line here."""

from collections.abc import Sequence

import pytest
import torch
from conftest import quick
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import set_seed

from kedit import world
from kedit.cases import Edit
from kedit.common.paths import ROOT
from kedit.editors import Editor
from kedit.lm import LM

DATA = world.cases(edits=4, limit=4, seed=1, train=True, train_people=24)
FAST = {
    "values.steps": 20,
    "sampling.lengths": [[5, 2]],
    "inject": 1,
    "network.rank": 32,
    "network.width": 128,
    "loss.contrastive": 0.0,  # of 24 people nobody learns when to use no edit
}  # where an editor has them
SUPPOSED = "Suppose that {facts}. Then {query}"  # what the world's model understands without having been aligned
EDITS = [case.edits[0] for case in DATA.cases]


@pytest.fixture(params=[path.stem for path in sorted((ROOT / "conf/editor").glob("*.yaml"))])
def editor(request: pytest.FixtureRequest, lm: LM) -> Editor:
    """As `kedit model=world editor=...` builds it, ready for the first edit."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", [f"editor={request.param}"]).editor
    read = {"prompt.template": SUPPOSED} if "{facts}" in str(OmegaConf.select(cfg, "prompt.template")) else {}
    quick(cfg, FAST | read)
    editor = instantiate(cfg, _convert_="all")
    set_seed(0)
    editor.fit(lm, DATA.train)
    return editor


def nll(lm: LM, edits: Sequence[Edit] = EDITS) -> list[float]:
    scored = lm.answer([e.prompt for e in edits], [e.target_new for e in edits])
    return [-sum(s.logprob) / len(s.logprob) for s in scored]


def weights(lm: LM) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


def learnt(lm: LM, editor: Editor) -> dict[str, torch.Tensor]:
    """All that edits may change: the model's weights, and what the editor knows besides."""
    known = {f"editor.{name}": value for name, value in editor.state().items() if isinstance(value, torch.Tensor)}
    return weights(lm) | {name: value.clone() for name, value in known.items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_an_edit_makes_its_answer_likelier(lm: LM, editor: Editor) -> None:
    for edit in EDITS:
        [before] = nll(lm, [edit])
        editor.edit(lm, [edit])
        assert nll(lm, [edit])[0] < before
        lm.restore()
        editor.reset()


def test_restore_and_reset_leave_the_pristine_model(lm: LM, editor: Editor) -> None:
    before, answers = learnt(lm, editor), nll(lm)
    editor.edit(lm, EDITS[:1])
    assert not equal(before, learnt(lm, editor))
    lm.restore()
    editor.reset()
    assert equal(before, learnt(lm, editor))
    assert nll(lm) == answers
    assert not any(p.requires_grad or p.grad is not None for p in lm.model.parameters())


def test_an_edit_after_restore_is_as_if_it_were_the_first(lm: LM, editor: Editor) -> None:
    torch.manual_seed(0)
    editor.edit(lm, EDITS[1:2])
    alone = learnt(lm, editor)
    lm.restore()
    editor.reset()
    editor.edit(lm, EDITS[:1])
    lm.restore()
    editor.reset()
    torch.manual_seed(0)
    editor.edit(lm, EDITS[1:2])
    assert equal(alone, learnt(lm, editor))


def test_no_edit_changes_nothing(lm: LM, editor: Editor) -> None:
    before = learnt(lm, editor)
    editor.edit(lm, [])
    assert equal(before, learnt(lm, editor))


def test_several_edits_can_be_made_together(lm: LM, editor: Editor) -> None:
    before = nll(lm)
    editor.edit(lm, EDITS)
    assert all(now < then for then, now in zip(before, nll(lm), strict=True))


def test_a_saved_state_continues_to_the_same_weights(lm: LM, editor: Editor) -> None:
    editor.edit(lm, EDITS[:1])
    model, known = {k: v.clone() for k, v in lm.state().items()}, editor.state()
    torch.manual_seed(0)
    editor.edit(lm, EDITS[1:2])
    straight, answers = learnt(lm, editor), nll(lm)
    lm.restore()
    editor.reset()
    lm.load_state(model)
    editor.load_state(lm, known)
    torch.manual_seed(0)
    editor.edit(lm, EDITS[1:2])
    assert equal(straight, learnt(lm, editor))
    assert nll(lm) == answers
