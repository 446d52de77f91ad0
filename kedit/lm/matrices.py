"""The matrices of a model, whichever way round their weights are stored: their names, widths, products."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from kedit.common.errors import InputError
from kedit.lm.anatomy import Anatomy, is_matrix

if TYPE_CHECKING:
    from kedit.lm.model import LM

Part = Literal["mlp", "mlp_out", "attn", "attn_out", "block"]
MatrixPart = Literal["mlp_out", "mlp_in", "attn_out"]  # one matrix each; mlp_in: up_proj, c_fc, fc_in


def matrices_of(lm: "LM", part: str, layers: Sequence[int]) -> list[str]:
    """Names of the matrices (modules) of a part of these layers, in the model's order: all of the MLP, or the one that
    writes its result, ... Raises InputError if the model has no such layer or part."""
    if part not in get_args(Part):
        raise InputError(f"part={part}: no part of a layer with matrices; choose from {', '.join(get_args(Part))}")
    lm.anatomy.check_layers(layers)
    roots = tuple(getattr(lm.anatomy, part).format(layer) for layer in layers)
    return matrices_in(lm.model, roots)


def matrices_in(model: nn.Module, roots: Sequence[str]) -> list[str]:
    """Names of the matrices that these modules are or have, in the model's order."""
    named = [name for name, module in model.named_modules() if is_matrix(module)]
    return [name for name in named if any(name == root or name.startswith(root + ".") for root in roots)]


def matrix_name(model: nn.Module, anatomy: Anatomy, part: MatrixPart, layer: int) -> str:
    """The path of a matrix in this layer. Raises InputError if the model has no such layer or matrix."""
    anatomy.check_layers([layer])
    if part != "mlp_in":
        return str(getattr(anatomy, part)).format(layer)
    out = anatomy.mlp_out.format(layer)
    width = widths_of(model.get_submodule(out))[1]
    mlp = anatomy.mlp.format(layer)
    inside = ((f"{mlp}.{name}", module) for name, module in model.get_submodule(mlp).named_modules())
    found = [name for name, m in inside if is_matrix(m) and name != out and widths_of(m)[0] == width]
    if not found:
        raise InputError(f"{mlp} has no matrix that reads the residual stream; choose part=mlp_out")
    return found[-1]  # gated MLPs: behind the gate's matrix, the one without an activation


def widths(lm: "LM", module: str) -> tuple[int, int]:
    """(i, o): how many numbers enter the matrix, and how many it puts out."""
    return widths_of(lm.model.get_submodule(module))


def widths_of(matrix: nn.Module) -> tuple[int, int]:
    """The same of a module."""
    weight = getattr(matrix, "base_layer", matrix).weight
    rows, columns = weight.shape  # type: ignore[misc]
    return (int(rows), int(columns)) if _by_input(matrix) else (int(columns), int(rows))


@torch.no_grad()
def add_to_matrices(lm: "LM", changes: Mapping[str, Float[Tensor, "_ _"]]) -> None:
    """Add to these matrices changes that are written as [o i], as part of an edit (see UndoLog.add)."""
    lm.add({f"{name}.weight": change.T if stored_by_input(lm, name) else change for name, change in changes.items()})


def stored_by_input(lm: "LM", module: str) -> bool:
    """Is its weight [i o], as GPT-2's, instead of [o i]?"""
    return _by_input(lm.model.get_submodule(module))


def _by_input(matrix: nn.Module) -> bool:
    return isinstance(getattr(matrix, "base_layer", matrix), Conv1D)


def product(matrix: nn.Module, weight: Tensor, states: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
    """What `matrix` would put out for `states` if `weight` were its own; hooks of the matrix do not run."""
    bias: Tensor | None = matrix.bias  # type: ignore[assignment]
    if not isinstance(matrix, Conv1D):
        return functional.linear(states, weight, bias)
    return states @ weight if bias is None else states @ weight + bias


def activation(model: nn.Module) -> nn.Module:
    """The function inside the model's MLPs. Raises InputError if its config names none."""
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    named = (getattr(config, key, None) for key in ("hidden_act", "hidden_activation", "activation_function"))
    name = next((name for name in named if name), None)
    if name is None:
        raise InputError(f"{type(model).__name__}: its config names no activation function")
    return ACT2FN[name]
