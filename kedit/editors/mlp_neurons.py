"""The neurons of the MLPs: the numbers that enter an MLP's output matrix, each with the vector that it adds."""

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from kedit.editors.attribution import HookPoint
from kedit.lm.text import Pair

if TYPE_CHECKING:
    from kedit.lm.model import LM


def neuron_sites(lm: "LM", pair: Pair) -> list[HookPoint]:
    """The neurons of each layer, where the pair's (first) answer token is predicted."""
    names = map(lm.anatomy.mlp_out.format, range(lm.anatomy.n_layers))
    return [HookPoint(lm.model.get_submodule(name), pair.start - 1) for name in names]


def neuron_vectors(lm: "LM", layer: int) -> Float[Tensor, "f d"]:
    """What each neuron of the layer adds to the residual stream, times its value: a view of the tracked weight."""
    name = lm.anatomy.mlp_out.format(layer)
    [weight] = lm.track([f"{name}.weight"])
    return weight.data if isinstance(lm.model.get_submodule(name), Conv1D) else weight.data.T
