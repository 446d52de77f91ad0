"""KE's network: the change by its equation, alone and in a batch. Contract: test_contract.py."""

from collections.abc import Sequence

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from kedit import world
from kedit.cases import Edit
from kedit.editors.hypernetwork import Hypernetwork
from kedit.editors.hypernetwork.conditioned import KnowledgeEditor, KnowledgeEditorNetwork
from kedit.editors.hypernetwork.networks import Sum
from kedit.editors.hypernetwork.objective import Editing, EditLoss
from kedit.editors.training.trainer import Training
from kedit.lm import LM
from kedit.lm.matrices import matrices_of

DATA = world.cases(edits=4, limit=4, seed=1, train=True, train_people=24)
EDITS = [case.edits[0] for case in DATA.cases]
OPTIONS = KnowledgeEditor(hidden=6, condition=5, scale=0.5)


def editing(lm: LM) -> Editing:
    torch.manual_seed(0)
    modules = matrices_of(lm, "mlp", [1, 2])
    return Editing(lm=lm, modules=modules, positions="all", network=OPTIONS.build(lm, modules), aggregation=Sum())


def dense(made: Editing, edit: Edit) -> list[Float[Tensor, "o i"]]:
    """The change of each matrix by the paper's equation, over the weight as it is stored, from autograd's gradient."""
    lm, network = made.lm, made.network
    assert isinstance(network, KnowledgeEditorNetwork)
    parameters = [lm.parameter(f"{name}.weight").requires_grad_(True) for name in made.modules]
    batch = lm.encode([edit.prompt], [edit.target_new])
    loss = nn.functional.cross_entropy(lm.answer_logits(batch), batch.gold)
    gradients = torch.autograd.grad(loss, parameters)
    for parameter in parameters:
        parameter.requires_grad_(False)
    _, (last, _) = network.lstm(network.embedding(batch.ids[0])[:, None])
    condition = network.condition(last[:, 0].flatten())
    found = []
    for name, gradient, conditioner in zip(made.modules, gradients, network.conditioners, strict=True):
        m, n = gradient.shape
        free_a, share_a, free_b, share_b, gate = conditioner(condition).split([n, m, n, m, 1])
        a, b = torch.outer(share_a.softmax(0), free_a), torch.outer(share_b.softmax(0), free_b)
        change = OPTIONS.scale * gate.sigmoid() * (a * gradient + b)
        found.append(change.T if network.shapes[name].by_input else change)
    return found


def changes(made: Editing, edits: Sequence[Edit]) -> list[Float[Tensor, "o i"]]:
    return [products.matrix() for products in made.changes(made.gradients(edits)).values()]


def test_a_change_is_the_scaled_gradient_and_an_offset(shaped: LM) -> None:
    made = editing(shaped)
    for change, wanted in zip(changes(made, EDITS[:1]), dense(made, EDITS[0]), strict=True):
        assert (change - wanted).abs().max() < 1e-6
        assert wanted.abs().max() > 1e-5


def test_edits_of_a_batch_are_changed_as_if_each_were_alone(shaped: LM) -> None:
    """Texts of several lengths, padded on either side, are read to their own ends."""
    made = editing(shaped)
    alone = [changes(made, [edit]) for edit in EDITS]
    for together, parts in zip(changes(made, EDITS), zip(*alone, strict=True), strict=True):
        assert torch.allclose(together, sum(parts[1:], parts[0]), atol=1e-6)


def test_everything_is_learnt(lm: LM) -> None:
    made = editing(lm)
    sum(change.square().sum() for change in changes(made, EDITS)).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.any() for p in made.network.parameters())
    own = lm.parameter(f"{lm.embedding_module}.weight")
    assert own.grad is None
    assert own.data_ptr() != next(made.network.parameters()).data_ptr()


@pytest.mark.parametrize("scale", [1e-9, 1.0])
def test_the_change_is_added(lm: LM, scale: float) -> None:
    """Not subtracted, as MEND's is: with a large gate and offset the model's weights grow by it."""
    training = Training(lr=0.0, edits=4, edits_per_update=4, validate_every=4, validation_edits=1)
    made = Hypernetwork(
        network=KnowledgeEditor(hidden=6, condition=5, scale=scale),
        training=training,
        loss=EditLoss(),
        aggregation=Sum(),
        last_layers=1,
    )
    made.fit(lm, DATA.train[:4])
    editing = made._editing
    assert editing is not None
    wanted, names = changes(editing, EDITS[:1]), made.edited_parameters(lm)
    before = [lm.parameter(name).detach().clone() for name in names]
    made.edit(lm, EDITS[:1])
    for name, old, change in zip(names, before, wanted, strict=True):
        assert torch.allclose(lm.parameter(name) - old, change, atol=1e-7)
