"""Editors that are trained to edit: algebra of their steps, and what they learn from. Their contract: test_contract.py;
their trainings, killed and spread over processes: test_training.py."""

import json
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHAPES
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from kedit import world
from kedit.cases import Edit
from kedit.common.errors import InputError
from kedit.editors.hypernetwork import Hypernetwork
from kedit.editors.hypernetwork.networks import Mend, ResidualBlock, Sum
from kedit.editors.hypernetwork.normaliser import Normaliser
from kedit.editors.hypernetwork.objective import Editing, EditLoss, HypernetworkObjective
from kedit.editors.hypernetwork.outer_products import OuterProducts, changing, gradients_of
from kedit.editors.training.examples import training_edits
from kedit.editors.training.trainer import Training, Update
from kedit.lm import LM
from kedit.lm.matrices import matrices_of

DATA = world.cases(edits=4, limit=4, seed=1, train=True, train_people=24)
EDITS = [case.edits[0] for case in DATA.cases]
QUICK: dict[str, Any] = {"lr": 1e-4, "edits": 8, "edits_per_update": 4, "validate_every": 4, "validation_edits": 2}
PLAIN: dict[str, Any] = {"rank": 4, "blocks": 0, "normalise": False}  # an identity network


def hypernetwork(network: dict[str, Any], training: dict[str, Any] | None = None, **parts: Any) -> Hypernetwork:
    defaults = {"loss": EditLoss(), "aggregation": Sum(), "last_layers": 2}
    return Hypernetwork(network=Mend(**network), training=Training(**QUICK | (training or {})), **(defaults | parts))


def fitted(lm: LM, network: dict[str, Any], **parts: Any) -> Hypernetwork:
    made = hypernetwork(network, {"lr": 0.0}, **parts)
    made.fit(lm, DATA.train[:6])
    return made


def editing(lm: LM, network: dict[str, Any], layers: tuple[int, ...] = (2, 3)) -> Editing:
    torch.manual_seed(0)
    modules = matrices_of(lm, "mlp", layers)
    made = Mend(**network).build(lm, modules)
    return Editing(lm=lm, modules=modules, positions="all", network=made, aggregation=Sum())


# --- the step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", ["descent", "released"])
@pytest.mark.parametrize("edits", [EDITS[:1], EDITS])
def test_with_an_identity_network_an_edit_is_a_step_of_gradient_descent(
    shaped: LM, sign: str, edits: list[Edit]
) -> None:
    """Along the gradient of the sum over edits of their mean losses; the released sign climbs."""
    made = fitted(shaped, PLAIN | {"rate": 0.5, "rate_lr": 0.0, "sign": sign})
    names = made.edited_parameters(shaped)
    before = {name: shaped.parameter(name).detach().clone() for name in names}
    parameters = [shaped.parameter(name).requires_grad_(True) for name in names]
    batch = shaped.encode([e.prompt for e in edits], [e.target_new for e in edits])
    loss = batch.mean(functional.cross_entropy(shaped.answer_logits(batch), batch.gold, reduction="none"))
    gradients = torch.autograd.grad(loss.sum(), parameters)
    for parameter in parameters:
        parameter.requires_grad_(False)
    told = made.edit(shaped, edits)
    assert told["loss"] == pytest.approx(float(loss.detach().mean()), abs=1e-5)
    step = -0.5 if sign == "descent" else 0.5
    for name, gradient in zip(names, gradients, strict=True):
        change = shaped.parameter(name) - before[name]
        assert (change - step * gradient).abs().max() < 1e-6
    shaped.restore()
    assert all(torch.equal(shaped.parameter(name), value) for name, value in before.items())


def test_a_change_in_a_pass_is_the_change_of_the_matrices(lm: LM) -> None:
    """Row n is read by the model with its own edit made, though no matrix is formed."""
    made = editing(lm, {"rank": 4, "rate": 0.01})
    gradients = made.gradients(EDITS)
    made.network.observe([gradients])
    changes = made.changes(gradients)
    asked = lm.encode([e.prompt for e in EDITS], [e.target_new for e in EDITS])
    with lm.only_intervening(changing(changes, torch.arange(4))):
        together = lm.answer_logits(asked)
    for i in range(4):
        own = {name: _of(products, i).matrix() for name, products in changes.items()}
        weights = {f"{name}.weight": lm.parameter(f"{name}.weight") + change for name, change in own.items()}
        with lm.substituted(weights):
            alone = lm.answer_logits(lm.encode([EDITS[i].prompt], [EDITS[i].target_new]))
        assert torch.allclose(together[asked.row == i], alone, atol=1e-4)
        assert not torch.allclose(alone, lm.answer_logits(asked)[asked.row == i], atol=1e-2)


def test_the_outer_gradient_is_that_of_autograd_through_edited_weights(lm: LM) -> None:
    """lm.substituted forms the matrices; outer products inside the pass give the same gradient of every parameter."""
    made = editing(lm, {"rank": 4, "rate": 0.01})
    gradients = made.gradients(EDITS[:1])
    made.network.observe([gradients])
    asked = lm.encode([DATA.cases[0].probes[1].prompt], [EDITS[0].target_new])

    def outer(dense: bool) -> list[Tensor]:
        changes = made.changes(gradients)
        weights = {f"{n}.weight": lm.parameter(f"{n}.weight") + p.matrix() for n, p in changes.items()}
        acting = lm.substituted(weights) if dense else lm.only_intervening(changing(changes, torch.zeros(1).long()))
        with acting:
            loss = functional.cross_entropy(lm.answer_logits(asked), asked.gold)
        return list(torch.autograd.grad(loss, list(made.network.parameters())))

    assert not lm.changed
    for one, other in zip(outer(False), outer(True), strict=True):
        assert (one - other).abs().max() <= 1e-5 * max(1.0, float(other.abs().max()))
    assert sum(bool(gradient.any()) for gradient in outer(False)) > len(list(made.network.parameters())) / 2


def _of(products: OuterProducts, edit: int) -> OuterProducts:
    mine = products.edit == edit
    return OuterProducts(products.inputs[mine], products.outputs[mine], products.edit[mine])


def test_rows_without_a_gradient_are_left_out(lm: LM) -> None:
    batch = lm.encode([e.prompt for e in EDITS], [e.target_new for e in EDITS])
    names = matrices_of(lm, "mlp_out", [2, 3])
    found = gradients_of(lm, batch, names, "all").factors
    tokens = Counter(batch.row.tolist())
    assert Counter(found[names[1]].edit.tolist()) == tokens  # above the last layer's MLP only answers are predicted
    last = {i: int(batch.col[batch.row == i].max()) + 1 for i in tokens}
    assert Counter(found[names[0]].edit.tolist()) == last  # below, every token up to the last prediction counts
    assert all(bool((one.outputs != 0).any(-1).all()) for one in found.values())


# --- the network -----------------------------------------------------------------------------------------------------


def test_statistics_do_not_depend_on_how_rows_are_grouped() -> None:
    torch.manual_seed(0)
    rows = 3 + 10 * torch.randn(50, 7)
    one, other = Normaliser(7), Normaliser(7)
    assert one(rows).equal(rows)
    one.observe(rows)
    for part in rows.split([1, 30, 2, 0, 17]):
        other.observe(part)
    for made in (one, other):
        assert float(made.n) == 50
        assert torch.allclose(made.mean, rows.mean(0), atol=1e-5)
        assert torch.allclose(made(rows), (rows - rows.mean(0)) / rows.std(0), atol=1e-5)


def test_a_block_begins_as_the_identity_and_has_a_gradient() -> None:
    torch.manual_seed(0)
    block, rows = ResidualBlock(6, 2, 3), torch.randn(5, 6)
    made = block(rows, torch.tensor([0, 0, 1, 2, 2]))
    assert made.equal(rows)
    made.square().sum().backward()
    assert all(bool(part.grad.any()) for part in (block.up, block.bias, block.shift))


def test_matrices_of_one_shape_share_a_network_with_scales_and_shifts_of_their_own(lm: LM) -> None:
    network = Mend(rank=8).build(lm, matrices_of(lm, "mlp", [2, 3]))
    assert {key: [name.split(".")[2:5] for name in names] for key, names in network.sharing.items()} == {
        "128x1024": [[i, "mlp", part] for i in "23" for part in ("gate_proj", "up_proj")],
        "1024x128": [[i, "mlp", "down_proj"] for i in "23"],
    }
    shapes = {name: tuple(value.shape) for name, value in network.named_parameters()}
    assert shapes["networks.128x1024.blocks.0.scale"] == (4, 1152)
    assert shapes["networks.1024x128.blocks.1.shift"] == (2, 1152)
    assert shapes["rates"] == (6,)
    with torch.no_grad():
        network.rates.copy_(torch.arange(6))
    assert [float(network.rate(name)) for name in network.shapes] == list(range(6))


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_what_is_trained_is_used_by_path_without_training_cases(lm: LM, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    made = hypernetwork({"rank": 4})
    assert made.needs_train
    made.fit(lm, DATA.train)
    told = made.fit_report()
    assert [point["edits"] for point in told["curve"]] == [4, 8]
    assert told["kept"] in told["curve"]
    assert {"loss", "edit", "locality", "success", "train_loss"} <= set(told["kept"])
    assert told["data"] == {"edits": 24, "held_out": 2}
    made.edit(lm, EDITS[:1])
    wanted = {name: lm.parameter(name).clone() for name in made.edited_parameters(lm)}
    lm.restore()
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    folder = str(told["folder"]).replace("cache", "elsewhere")
    given = hypernetwork({"rank": 4}, trained=folder)
    assert not given.needs_train
    given.fit(lm, ())
    given.edit(lm, EDITS[:1])
    assert all(torch.equal(lm.parameter(name), value) for name, value in wanted.items())
    assert not (tmp_path / "cache").exists()
    lm.restore()
    for network, parts, message in [
        ({"rank": 5}, {}, r"blocks.0.up is \(1152, 4\), but editor.network asks for \(1152, 5\)"),
        ({"rank": 4, "blocks": 1}, {}, r"but editor.network asks for none"),
        (
            {"rank": 4},
            {"last_layers": 1},
            r"trained for model.layers.2.mlp.gate_proj, model.layers.2.mlp.up_proj and 4",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            hypernetwork(network, trained=folder, **parts).fit(lm, ())


def test_a_folder_without_a_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no network.safetensors and no about.json there; give a folder"):
        hypernetwork(PLAIN, trained=str(tmp_path))
    (tmp_path / "about.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match=r"no network.safetensors there"):
        hypernetwork(PLAIN, trained=str(tmp_path))


def test_only_an_unedited_model_is_learnt_from(lm: LM) -> None:
    made = fitted(lm, PLAIN)
    made.edit(lm, EDITS[:1])
    with pytest.raises(InputError, match="needs the unedited model"):
        hypernetwork(PLAIN).fit(lm, DATA.train)


def test_an_update_does_not_depend_on_how_many_edits_share_a_pass(lm: LM) -> None:
    found = []
    edits = training_edits(DATA.train)
    for at_once in (None, 1, 3):
        made = editing(lm, {"rank": 4, "rate": 1e-3})
        objective = HypernetworkObjective(made, EditLoss(), Training(**QUICK, at_once=at_once), edits, edits)
        sums = objective.backward(Update(0, [3, 1, 4, 7], range(4)))
        found.append([torch.tensor(list(sums.values())), *(p.grad for p in made.network.parameters())])
    for one, other in zip(found[0], found[1], strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6 * max(1.0, float(one.abs().max())))
    for one, other in zip(found[0], found[2], strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6 * max(1.0, float(one.abs().max())))


@pytest.mark.parametrize("shape", ["gpt2", "gptj"])
def test_every_architecture_is_edited_several_edits_at_once(shape: str, lm: LM) -> None:
    """Several edits in one call: the sum of their changes, each from the model before."""
    torch.manual_seed(0)
    model = LM(AutoModelForCausalLM.from_config(deepcopy(SHAPES[shape])), lm.text.tokenizer, token_budget=20)
    made = hypernetwork({"rank": 2, "rate": 1e-3})
    made.fit(model, DATA.train[:6])
    names = made.edited_parameters(model)
    before = {name: model.parameter(name).clone() for name in names}
    summed = {name: torch.zeros_like(value) for name, value in before.items()}
    for edit in EDITS:
        made.edit(model, [edit])
        summed = {name: summed[name] + model.parameter(name) - before[name] for name in names}
        model.restore()
    made.edit(model, EDITS)
    for name in names:
        assert torch.allclose(model.parameter(name) - before[name], summed[name], atol=1e-5)
    model.restore()
