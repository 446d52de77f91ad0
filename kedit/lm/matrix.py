"""One matrix of a layer: which module it is, its product with another weight, and the activation inside the MLPs."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from kedit.common.errors import InputError
from kedit.lm.anatomy import Anatomy

MatrixPart = Literal["mlp_out", "mlp_in", "attn_out"]  # mlp_in: up_proj, c_fc, fc_in


def matrix_name(model: nn.Module, anatomy: Anatomy, part: MatrixPart, layer: int) -> str:
    """The path of a matrix in this layer. Raises InputError if the model has no such layer or matrix."""
    anatomy.check_layers([layer])
    if part != "mlp_in":
        return str(getattr(anatomy, part)).format(layer)
    out = anatomy.mlp_out.format(layer)
    width = sizes(model.get_submodule(out))[1]
    mlp = anatomy.mlp.format(layer)
    inside = ((f"{mlp}.{name}", module) for name, module in model.get_submodule(mlp).named_modules())
    found = [name for name, m in inside if is_matrix(m) and name != out and sizes(m)[0] == width]
    if not found:
        raise InputError(f"{mlp} has no matrix that reads the residual stream; choose part=mlp_out")
    return found[-1]  # gated MLPs: behind the gate's matrix, the one without an activation


def is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def sizes(matrix: nn.Module) -> tuple[int, int]:
    """How many numbers enter and leave a matrix; Conv1D stores (in, out), Linear (out, in)."""
    first, second = matrix.weight.shape  # type: ignore[misc]
    return (first, second) if isinstance(matrix, Conv1D) else (second, first)


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
