"""The neurons of the MLPs: the numbers that enter an MLP's output matrix, each with the vector that it adds."""

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from kedit.editors.attribution import HookPoint
from kedit.lm.matrices import add_to_matrices
from kedit.lm.text import Pair

if TYPE_CHECKING:
    from kedit.lm.model import LM


def neuron_sites(lm: "LM", pair: Pair) -> list[HookPoint]:
    """The neurons of each layer, where the pair's (first) answer token is predicted."""
    names = map(lm.anatomy.mlp_out.format, range(lm.anatomy.n_layers))
    return [HookPoint(lm.model.get_submodule(name), pair.start - 1) for name in names]


def add_to_neurons(lm: "LM", layer: int, change: Float[Tensor, "f d"]) -> None:
    """Change the value vectors of the layer: what a neuron adds to the residual stream, times its activation."""
    add_to_matrices(lm, {lm.anatomy.mlp_out.format(layer): change.T})
