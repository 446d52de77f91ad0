"""The contract of every editor (DESIGN §11), parametrised over conf/editor: a new yaml is tested without a line here.

An editor is built and fitted once. Exceptions are declared by the editor's class: see kedit.editors.Editor.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conftest import SHAPES, quick
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from transformers import AutoModelForCausalLM, set_seed

from kedit import world
from kedit.common.paths import ROOT
from kedit.data.dataset import hand_over
from kedit.editors import Editor
from kedit.editors.gated.codebook import CodebookGate
from kedit.editors.gated.melo import BlockGate
from kedit.editors.gated.side_memory import SideGate
from kedit.evaluation.evaluator import Evaluator
from kedit.evaluation.step_trace import StepTrace
from kedit.lm import LM
from kedit.loop.settings import Step
from kedit.loop.step_runner import StepRunner, Turn

YAMLS = sorted((ROOT / "conf/editor").glob("*.yaml"))
DATA = hand_over(world.cases(edits=4, limit=4, seed=1, train=True, train_people=24))
FAST = {  # where an editor has them
    "values.steps": 30,
    "sampling.lengths": [[5, 2]],
    "sampling.tokens": [3],
    "network.rank": 32,
    "network.width": 128,
    "training.edits_per_update": 8,
    "training.decay": False,
    "loss.contrastive": 0.0,  # of 24 people nobody learns when to use no edit
    "inject": 1,
    "examples.para.n": 3,
    "examples.rand.n": 3,
    "examples.sim.n": 3,
}
SUPPOSED = "Suppose that {facts}. Then {query}"  # what the world's model understands without having been aligned
EDITS = [case.edits[0] for case in DATA.cases]
FIRST, SECOND, *_ = EDITS
ASKED = [probe for probe in DATA.cases[0].probes if probe.kind in ("reliability", "generality", "locality")][:5]
LONG = "Eastford, Beloria. Lucy Kelden works for Crown Media. The capital of Beloria is Velport"
PROMPTS, ANSWERS = [probe.prompt for probe in ASKED], [probe.answers[0] for probe in ASKED]


def target(name: str) -> str:
    """The class of an editor's yaml, or of the yaml that it begins with."""
    loaded = OmegaConf.load(ROOT / f"conf/editor/{name}.yaml")
    return str(loaded._target_) if "_target_" in loaded else target(next(d for d in loaded.defaults if d in STEMS))


STEMS = [path.stem for path in YAMLS]
OWN = [path.stem for path in YAMLS if "_target_" in OmegaConf.load(path)]  # build on no other editor
INSIDE = [name for name in OWN if target(name).startswith("kedit.editors.gated")]  # act inside passes
CHOICES = [(name, "world") for name in STEMS] + [(name, shape) for name in INSIDE for shape in ("gpt2", "qwen2")]

Learnt = dict[str, Tensor]


@dataclass
class Ready:
    """An editor after `fit`, what it learnt, and a way back to the moment after its first edit."""

    lm: LM
    editor: Editor
    trained: bool  # a model that knows something
    unedited: list[float]  # nll of EDITS
    alone: Learnt  # after the second edit alone
    alone_nll: float
    after_first: tuple[dict[str, Tensor], dict[str, Tensor | str]]  # saved states
    first: Learnt
    first_nll: float
    both: Learnt  # after the second edit on top
    both_nll: list[float]

    def back(self) -> None:
        """The unedited model."""
        self.lm.restore()
        self.editor.reset()

    def edited(self) -> None:
        """As after the first edit, from what was saved."""
        model, editor = self.after_first
        self.lm.load_state(model)
        self.editor.load_state(self.lm, editor)


def built(name: str, lm: LM, chosen: Sequence[str]) -> Editor:
    """As `kedit editor=...` builds it, ready for the first edit."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", [f"editor={name}", *chosen]).editor
    read = {"prompt.template": SUPPOSED} if "{facts}" in str(OmegaConf.select(cfg, "prompt.template")) else {}
    editor = instantiate(quick(cfg, FAST | read), _convert_="all")
    set_seed(0)
    editor.fit(lm, DATA.train)
    return editor


def random_lm(shape: str, world_lm: LM) -> LM:
    torch.manual_seed(0)
    config = deepcopy(SHAPES[shape])
    config.initializer_range = 0.08  # large enough to tell prompts apart
    return LM(AutoModelForCausalLM.from_config(config), world_lm.text.tokenizer)


@pytest.fixture(scope="module", params=CHOICES, ids="-".join)
def made(request: pytest.FixtureRequest, _world_lm: LM) -> Ready:
    name, shape = request.param
    _world_lm.restore()
    lm = _world_lm if shape == "world" else random_lm(shape, _world_lm)
    local = ["model=local", "model.path=x", "dataset=zsre"]
    editor = built(name, lm, [] if shape == "world" else local)
    unedited = nll(lm)
    edit(lm, editor, 1)
    alone, alone_nll = learnt(lm, editor), nll(lm, 1)
    lm.restore()
    editor.reset()
    edit(lm, editor, 0)
    saved = {key: value.clone() for key, value in lm.state().items()}, editor.state()
    first, first_nll = learnt(lm, editor), nll(lm, 0)
    edit(lm, editor, 1)
    parts = (alone, alone_nll[0], saved, first, first_nll[0], learnt(lm, editor), nll(lm))
    return Ready(lm, editor, shape == "world", unedited, *parts)


@pytest.fixture
def ready(made: Ready) -> Iterator[Ready]:
    """Unedited, before and after."""
    made.back()
    yield made
    made.back()


def edit(lm: LM, editor: Editor, which: int) -> None:
    torch.manual_seed(which)
    editor.edit(lm, [EDITS[which]])


def nll(lm: LM, which: int | None = None) -> list[float]:
    """Of the edits' answers."""
    edits = EDITS if which is None else [EDITS[which]]
    scored = lm.answer([e.prompt for e in edits], [e.target_new for e in edits])
    return [-sum(s.logprob) / len(s.logprob) for s in scored]


def asked(lm: LM) -> list[list[float]]:
    return [scored.logprob for scored in lm.answer(PROMPTS, ANSWERS)]


def close(a: list[list[float]], b: list[list[float]]) -> bool:
    return all(x == pytest.approx(y, abs=2e-3) for x, y in zip(a, b, strict=True))


def learnt(lm: LM, editor: Editor) -> Learnt:
    """All that edits may change: the model's weights, and what the editor knows besides."""
    known = {f"editor.{name}": value for name, value in editor.state().items() if isinstance(value, Tensor)}
    kept = {**lm.model.state_dict(), **known, **{f"attached.{name}": value for name, value in lm.attached.items()}}
    return {name: value.clone() for name, value in kept.items()}


def equal(a: Learnt, b: Learnt) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


# --- the six properties ----------------------------------------------------------------------------------------------


def test_greedy_generation_says_what_teacher_forcing_predicts(ready: Ready) -> None:
    if not ready.editor.prompt_decides:
        pytest.skip("the editor's switches let more than the prompt decide what is read")
    ready.edited()
    check_greedy_generation(ready.lm)


def check_greedy_generation(lm: LM) -> None:
    """As many tokens as LONG has: what is forgotten shows late."""
    said = lm.greedy_continuation(lm.batch(lm._pairs(lm._routes(PROMPTS), [LONG] * len(PROMPTS)))).pairs
    for one, scored in zip(said, lm.score(said), strict=True):
        assert scored.pred == one.answer


@pytest.mark.parametrize(
    ("name", "gate", "chosen"),
    [
        ("grace", CodebookGate, ["editor.replacement=replace_all", "editor.lr=0.3"]),
        ("melo", BlockGate, []),
        ("wise", SideGate, []),
    ],
)
def test_a_gate_that_forgets_its_edit_after_the_first_generated_token_breaks_the_contract(
    lm: LM, monkeypatch: pytest.MonkeyPatch, name: str, gate: Any, chosen: list[str]
) -> None:
    """Beside it, the gate that does not forget keeps it."""
    editor, own = built(name, lm, chosen), gate.__call__
    edit(lm, editor, 0)
    check_greedy_generation(lm)
    monkeypatch.setattr(gate, "__call__", lambda self, this, x, out: out if this.continues else own(self, this, x, out))
    with pytest.raises(AssertionError):
        check_greedy_generation(lm)


def test_answers_do_not_depend_on_padding_batch_or_order(ready: Ready) -> None:
    if not ready.editor.prompt_decides:
        pytest.skip("the editor's switches let more than the prompt decide what is read")
    ready.edited()
    lm, before = ready.lm, asked(ready.lm)
    budget = lm.token_budget
    try:
        for lm.padding_side, lm.token_budget in (("left", 512), ("left", 1), ("right", 1)):
            assert close(asked(lm), before)
    finally:
        lm.padding_side, lm.token_budget = "right", budget
    backwards = lm.answer(PROMPTS[::-1], ANSWERS[::-1])
    assert close([scored.logprob for scored in backwards[::-1]], before)


def test_kept_lower_layers_change_no_answer(ready: Ready) -> None:
    lm = ready.lm
    lm.cache_lower_layers(ready.editor.edited_parameters(lm), PROMPTS, ANSWERS)
    try:
        ready.edited()
        kept = asked(lm)
    finally:
        lm.cache_lower_layers([])
    assert close(asked(lm), kept)


def test_an_edit_that_fails_in_its_last_line_leaves_everything_as_it_was(
    ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready.edited()
    own = ready.editor.edit

    def fails(*given: Any) -> None:
        own(*given)
        raise FloatingPointError("the loss is nan")

    before, evaluator = asked(ready.lm), Evaluator(fluency_tokens=0)
    with monkeypatch.context() as patch:
        patch.setattr(ready.editor, "edit", fails)
        runner, step = StepRunner(ready.lm, ready.editor, evaluator, {}), Step(DATA.cases[1:2])
        trace = StepTrace(ready.lm, evaluator, step.edit, {})
        [record] = runner._edit([Turn(1, step, 1, 1, ready.editor)], trace)
    assert record["failed"] == 1
    assert equal(learnt(ready.lm, ready.editor), ready.first)
    assert asked(ready.lm) == before


def test_an_empty_state_leaves_nothing_hung(ready: Ready) -> None:
    lm, before = ready.lm, asked(ready.lm)
    ready.edited()
    ready.back()
    lm.load_state({})
    ready.editor.load_state(lm, ready.editor.state())
    assert lm.changed == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    assert asked(lm) == before


def test_an_edit_makes_its_answer_likelier(made: Ready) -> None:
    if not made.trained:
        pytest.skip("a random model has no scale that an editor's numbers are made for")
    least = made.editor.least_gain
    assert made.unedited[0] - made.first_nll >= least
    assert made.unedited[1] - made.alone_nll >= least


# --- undoing and continuing ------------------------------------------------------------------------------------------


def test_restore_and_reset_leave_the_unedited_model(ready: Ready) -> None:
    before, answers = learnt(ready.lm, ready.editor), nll(ready.lm)
    ready.edited()
    assert not equal(before, learnt(ready.lm, ready.editor))
    ready.back()
    assert equal(before, learnt(ready.lm, ready.editor))
    assert nll(ready.lm) == answers
    assert not any(p.requires_grad or p.grad is not None for p in ready.lm.model.parameters())


def test_an_edit_after_restore_is_as_if_it_were_the_first(ready: Ready) -> None:
    edit(ready.lm, ready.editor, 1)
    assert equal(learnt(ready.lm, ready.editor), ready.alone)


def test_no_edit_changes_nothing(ready: Ready) -> None:
    before = learnt(ready.lm, ready.editor)
    ready.editor.edit(ready.lm, [])
    assert equal(before, learnt(ready.lm, ready.editor))
    assert ready.lm.changed == []


def test_several_edits_can_be_made_together(ready: Ready) -> None:
    torch.manual_seed(0)
    ready.editor.edit(ready.lm, EDITS)
    if ready.trained and ready.editor.prompt_decides and ready.editor.least_gain > 0:
        likelier = [now < then for then, now in zip(ready.unedited, nll(ready.lm), strict=True)]
        assert all(likelier) or (ready.editor.forgets_some and sum(likelier) > len(likelier) / 2)


def test_a_saved_state_continues_to_the_same_weights(ready: Ready) -> None:
    ready.edited()
    edit(ready.lm, ready.editor, 1)
    assert equal(learnt(ready.lm, ready.editor), ready.both)
    assert nll(ready.lm) == ready.both_nll
