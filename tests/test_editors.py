"""The contract of every editor, parametrised over conf/editor: a new yaml is tested without a line here."""

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from kedit import world
from kedit.cases import Edit
from kedit.editors import Editor
from kedit.editors.finetune import FineTune
from kedit.errors import InputError
from kedit.lm import LM
from kedit.losses.cross_entropy import CrossEntropy
from kedit.losses.kdpo import KDPO
from kedit.run import ROOT

DATA = world.cases(edits=4, limit=4, seed=1, train=True)
EDITS = [case.edits[0] for case in DATA.cases]


@pytest.fixture(params=[path.stem for path in sorted((ROOT / "conf/editor").glob("*.yaml"))])
def editor(request: pytest.FixtureRequest, lm: LM) -> Editor:
    """As `kedit model=world editor=...` builds it, ready for the first edit."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        editor = instantiate(compose("config", [f"editor={request.param}"]).editor, _convert_="all")
    torch.manual_seed(0)
    editor.fit(lm, DATA.train)
    return editor


def nll(lm: LM, edits: Sequence[Edit] = EDITS) -> list[float]:
    scored = lm.answer([e.prompt for e in edits], [e.target_new for e in edits])
    return [-sum(s.logprob) / len(s.logprob) for s in scored]


def weights(lm: LM) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


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
    before = weights(lm)
    editor.edit(lm, EDITS[:1])
    assert not equal(before, weights(lm))
    lm.restore()
    editor.reset()
    assert equal(before, weights(lm))
    assert not any(p.requires_grad or p.grad is not None for p in lm.model.parameters())


def test_an_edit_after_restore_is_as_if_it_were_the_first(lm: LM, editor: Editor) -> None:
    torch.manual_seed(0)
    editor.edit(lm, EDITS[1:2])
    alone = weights(lm)
    lm.restore()
    editor.reset()
    editor.edit(lm, EDITS[:1])
    lm.restore()
    editor.reset()
    torch.manual_seed(0)
    editor.edit(lm, EDITS[1:2])
    assert equal(alone, weights(lm))


def test_no_edit_changes_nothing(lm: LM, editor: Editor) -> None:
    before = weights(lm)
    editor.edit(lm, [])
    assert equal(before, weights(lm))


def test_several_edits_can_be_made_together(lm: LM, editor: Editor) -> None:
    before = nll(lm)
    editor.edit(lm, EDITS)
    assert all(now < then for then, now in zip(before, nll(lm), strict=True))


def test_a_saved_state_continues_to_the_same_weights(lm: LM, editor: Editor) -> None:
    editor.edit(lm, EDITS[:1])
    model, learnt = {k: v.clone() for k, v in lm.state().items()}, editor.state()
    torch.manual_seed(0)
    editor.edit(lm, EDITS[1:2])
    straight = weights(lm)
    lm.restore()
    editor.reset()
    lm.load_state(model)
    editor.load_state(lm, learnt)
    torch.manual_seed(0)
    editor.edit(lm, EDITS[1:2])
    assert equal(straight, weights(lm))


# --- the fine-tuning loop --------------------------------------------------------------------------------------------


def test_ft_m_stops_without_a_step_when_the_loss_is_small_enough(lm: LM) -> None:
    before = weights(lm)
    assert FineTune(loss=CrossEntropy(), lr=1e-3, steps=25, stop_loss=100.0).edit(lm, EDITS[:1])["steps"] == 0
    assert equal(before, weights(lm))
    few = FineTune(loss=CrossEntropy(), lr=1e-3, steps=25, stop_loss=0.5).edit(lm, EDITS[:1])
    assert 1 < few["steps"] < 25


def test_kdpo_stops_at_the_start_of_a_cycle_once_the_answer_is_the_argmax(lm: LM) -> None:
    editor = FineTune(loss=KDPO(beta=0.1), lr=1e-3, cycles=10, steps=8)
    taken = int(editor.edit(lm, EDITS[:1])["steps"])
    assert taken % 8 == 0
    assert 8 <= taken < 80
    assert editor.edit(lm, EDITS[:1])["steps"] == 0  # it says so already: y_l = y_w in the first cycle
    [scored] = lm.answer([EDITS[0].prompt], [EDITS[0].target_new])
    assert scored.pred == scored.gold


def test_kdpo_equals_a_plain_loop_with_a_frozen_copy_of_the_model(lm: LM) -> None:
    """Algorithm 1, word by word: a second model as reference, at the start of the edit, after an earlier edit."""
    lm = LM(copy.deepcopy(lm.model).double(), lm.text.tokenizer)  # float64: Adam magnifies rounding
    editor = FineTune(loss=KDPO(beta=0.1), lr=1e-3, cycles=3, steps=4, layers=[2])
    editor.edit(lm, EDITS[:1])
    reference, policy = copy.deepcopy(lm.model), copy.deepcopy(lm.model)
    weight = policy.model.layers[2].mlp.down_proj.weight.requires_grad_(True)
    optimizer = torch.optim.Adam([weight], lr=1e-3)
    [pair] = lm.text.pairs([EDITS[1].prompt], [EDITS[1].target_new])
    ids, start = torch.tensor([pair.ids]), pair.start

    def logp(model: torch.nn.Module) -> torch.Tensor:
        return model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)

    chosen = ids[0, start:]
    for _ in range(3):
        rejected = logp(policy).argmax(-1)
        if torch.equal(rejected, chosen):
            break
        for _ in range(4):
            now, then = logp(policy), logp(reference).detach()
            h = sum(p.gather(-1, y[:, None]).sum() * s for p, s, y in [(now, 1, chosen), (now, -1, rejected)])
            h = h - sum(p.gather(-1, y[:, None]).sum() * s for p, s, y in [(then, 1, chosen), (then, -1, rejected)])
            optimizer.zero_grad()
            (-torch.nn.functional.logsigmoid(0.1 * h)).backward()
            optimizer.step()
    editor.edit(lm, EDITS[1:2])
    assert torch.allclose(lm.model.model.layers[2].mlp.down_proj.weight, weight, atol=1e-10)


def test_the_norm_constraint_holds(lm: LM) -> None:
    [name] = lm.anatomy.parameters(lm.model, "mlp_out.weight", [2])
    before = lm.model.get_parameter(name).clone()
    FineTune(loss=CrossEntropy(), lr=1e-2, steps=5, norm_constraint=1e-3, layers=[2]).edit(lm, EDITS[:1])
    change = (lm.model.get_parameter(name) - before).abs().max()
    assert 0 < change <= 1e-3 + 1e-7


def test_a_loss_that_is_not_finite_raises_what_the_loop_catches(lm: LM) -> None:
    [name] = lm.anatomy.parameters(lm.model, "mlp_out.weight", [2])
    lm.track([name])[0].data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="nan"):
        FineTune(loss=CrossEntropy(), lr=1e-3, steps=5).edit(lm, EDITS[:1])


def test_layers_and_parts_that_the_model_does_not_have_are_refused(lm: LM) -> None:
    with pytest.raises(InputError, match="layers 0 to 3"):
        FineTune(loss=CrossEntropy(), lr=1e-3, steps=1, layers=[21]).edit(lm, EDITS[:1])
    with pytest.raises(InputError, match="mlp_out"):
        FineTune(loss=CrossEntropy(), lr=1e-3, steps=1, parameters="down_proj").edit(lm, EDITS[:1])
