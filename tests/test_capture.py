"""Gradients in factors: their sum is autograd's gradient, whatever the architecture, padding and batch."""

from copy import deepcopy

import pytest
import torch
from conftest import SHAPES
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from kedit.common.errors import InputError
from kedit.lm import LM
from kedit.lm.capture import Factors, row_owners
from kedit.lm.matrices import add_to_matrices, matrices_of, widths
from kedit.lm.text import Batch

PROMPTS = ["Ann Lee was born in", "The employer of a person named Bob is", "Who?"]
ANSWERS = ["Velport, Norland", "Crown", "Carl Norro"]


def autograd(lm: LM, batch: Batch, names: list[str]) -> dict[str, torch.Tensor]:
    """The gradients of these matrices, as [o i]."""
    weights = {name: lm.parameter(f"{name}.weight") for name in names}
    for weight in weights.values():
        weight.requires_grad_(True)
    loss = functional.cross_entropy(lm.answer_logits(batch), batch.gold)
    found = torch.autograd.grad(loss, list(weights.values()))
    for weight in weights.values():
        weight.requires_grad_(False)
    by_input = [isinstance(lm.model.get_submodule(name), Conv1D) for name in names]
    return {name: g.T if turned else g for name, g, turned in zip(names, found, by_input, strict=True)}


@pytest.mark.parametrize("side", ["left", "right"])
def test_factors_sum_to_the_gradient_of_autograd(shaped: LM, side: str) -> None:
    shaped.padding_side = side  # type: ignore[assignment]
    names = matrices_of(shaped, "block", [1, 2])
    batch = shaped.encode(PROMPTS, ANSWERS)
    found, wanted = shaped.capture(batch, names, positions="all"), autograd(shaped, batch, names)
    assert list(found) == names
    for name in names:
        assert found[name].gradient().shape == widths(shaped, name)[::-1]
        assert (found[name].gradient() - wanted[name]).abs().max() < 1e-6
    assert len(row_owners(batch, "all")) == int(batch.mask.sum()) == len(found[names[0]].inputs)
    assert not any(p.requires_grad or p.grad is not None for p in shaped.model.parameters())


def test_answer_positions_are_the_rows_that_predict_the_answers(lm: LM) -> None:
    batch, last = lm.encode(PROMPTS, ANSWERS), lm.anatomy.mlp_out.format(3)
    every, answer = lm.capture(batch, [last], "all")[last], lm.capture(batch, [last])[last]
    assert row_owners(batch, "answer").equal(batch.row)
    assert len(answer.inputs) == len(batch.gold)
    places = batch.mask.cumsum(1)[batch.row, batch.col] - 1
    starts = torch.tensor([0, *batch.mask.sum(1).cumsum(0)[:-1]])[batch.row]
    for chosen, among in zip(answer, every, strict=True):
        assert chosen.equal(among[starts + places])
    assert (answer.gradient() - every.gradient()).abs().max() < 1e-6  # in the last layer nothing else has a gradient


def test_the_loss_is_a_choice_and_rows_of_a_batch_do_not_mix(lm: LM) -> None:
    names = matrices_of(lm, "mlp", [2, 3])
    batch = lm.encode(PROMPTS, ANSWERS)

    def each(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return batch.mean(functional.cross_entropy(logits, batch.gold, reduction="none")).sum()

    together, owners = lm.capture(batch, names, "all", each), row_owners(batch, "all")
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        alone = lm.capture(lm.encode([prompt], [answer]), names, "all")
        for name in names:
            mine = Factors(*(part[owners == i] for part in together[name]))
            wanted = alone[name].gradient()
            assert (mine.gradient() - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_nothing_below_the_first_matrix_is_kept(lm: LM) -> None:
    """The embeddings' output has no gradient function: the graph begins at the first of the matrices."""
    seen: list[bool] = []
    handle = lm.model.model.layers[3].register_forward_pre_hook(lambda _, args: seen.append(args[0].requires_grad))
    lm.capture(lm.encode(PROMPTS, ANSWERS), [lm.anatomy.mlp_out.format(3)])
    handle.remove()
    assert seen == [False]


def test_an_edited_model_is_captured_as_it_is(lm: LM) -> None:
    name = lm.anatomy.mlp_out.format(2)
    batch = lm.encode(PROMPTS, ANSWERS)
    before = lm.capture(batch, [name])[name]
    add_to_matrices(lm, {name: 0.1 * torch.ones(128, 1024)})
    assert not torch.equal(lm.capture(batch, [name])[name].outputs, before.outputs)
    lm.restore()
    assert lm.capture(batch, [name])[name].outputs.equal(before.outputs)


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_a_change_is_written_the_way_the_matrix_is_stored(shape: str, lm: LM) -> None:
    torch.manual_seed(0)
    model = LM(AutoModelForCausalLM.from_config(deepcopy(SHAPES[shape])), lm.text.tokenizer)
    [name] = matrices_of(model, "mlp_out", [1])
    i, o = widths(model, name)
    x, change = torch.randn(2, i), torch.randn(o, i)
    module = model.model.get_submodule(name)
    before = module(x)
    add_to_matrices(model, {name: change})
    assert torch.allclose(module(x) - before, x @ change.T, atol=1e-4)
    model.restore()


def test_a_part_or_layer_that_the_model_has_not_is_said(lm: LM) -> None:
    with pytest.raises(InputError, match="part=brain: no part of a layer with matrices"):
        matrices_of(lm, "brain", [0])
    with pytest.raises(InputError, match="the model has layers 0 to 3"):
        matrices_of(lm, "mlp", [4])
