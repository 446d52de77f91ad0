"""The architecture of a causal language model: where its layers, MLP and attention outputs, final norm and head are.

It is found by inspection, not by the model's name.
"""

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kedit.common.errors import InputError

PARTS = ("mlp_out", "attn_out", "mlp", "attn", "block", "model")


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Module paths; "{}" stands for a layer's index. tests/test_architectures.py lists the architectures that are
    tested."""

    body: str  # everything below the head: ids -> last hidden states, after the final norm
    block: str  # one layer, e.g. "model.layers.{}"
    attn: str
    mlp: str
    attn_out: str  # the matrix that writes attention's result into the residual stream (o_proj, c_proj, out_proj)
    mlp_out: str  # the matrix that writes the MLP's result into the residual stream (down_proj, c_proj, fc_out)
    norm: str
    head: str
    n_layers: int

    def layer(self, depth: float) -> int:
        """The layer at this relative depth: floor(depth · n_layers)."""
        return int(depth * self.n_layers)

    def first_layer(self, names: Sequence[str]) -> int:
        """The first layer that a parameter of these names is in, 0 if one is in no layer (embeddings, the head)."""
        before = self.block.partition("{}")[0]
        inside = [name.removeprefix(before).partition(".")[0] for name in names if name.startswith(before)]
        return min(map(int, inside)) if inside and len(inside) == len(names) else 0

    def mlp_width(self, model: nn.Module, layer: int) -> int:
        """f: how many numbers enter the MLP's output matrix of this layer."""
        matrix = model.get_submodule(self.mlp_out.format(layer))
        return matrix.weight.shape[0 if isinstance(matrix, Conv1D) else 1]  # type: ignore[index, return-value]

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raises InputError if the model has no such layer, or none is given."""
        wrong = [layer for layer in layers if not 0 <= layer < self.n_layers]
        if wrong or not layers:
            raise InputError(f"layers={list(layers)}: the model has layers 0 to {self.n_layers - 1}; choose from these")

    def parameters(self, model: nn.Module, part: str, layers: Sequence[int]) -> list[str]:
        """Names of the parameters of `part` in `layers`: a part (with weight and bias), or "<part>.weight"; "model"
        for all."""
        role, _, leaf = part.partition(".")
        if role not in PARTS:
            raise InputError(
                f"parameters={part!r}: no such part of a model; choose one of {', '.join(PARTS)}, or <part>.weight"
            )
        names = [name for name, _ in model.named_parameters()]
        if role == "model":
            return names
        self.check_layers(layers)
        roots = tuple(getattr(self, role).format(layer) + "." + leaf for layer in layers)
        return [name for name in names if name.startswith(roots)]


def context_length(config: PretrainedConfig) -> int:
    """The most tokens that the model reads; sys.maxsize if its config names no limit."""
    text = config.get_text_config(decoder=True)
    lengths = [getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    return next((length for length in lengths if length), sys.maxsize)


def vocabulary_size(model: PreTrainedModel) -> int:
    """How many token ids the model embeds."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]


def inspect_anatomy(model: PreTrainedModel) -> Anatomy:
    """Find the parts by their structure: layers are the body's module list, attention takes a mask, the MLP does not.

    Raises InputError with the reason if the model is not a decoder whose layers all have one attention and one MLP.
    """
    paths = {id(module): name for name, module in model.named_modules()}
    body, layers = _body_and_layers(model)
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"{type(model).__name__}: it has no head that predicts tokens; give a causal language model")
    config = model.config.get_text_config(decoder=True)
    _check_dense(config, layers)
    attn, mlp = _attention_and_mlp(layers)
    width = config.hidden_size
    template = paths[id(layers)] + ".{}"

    def inside(module: nn.Module) -> str:
        return template + paths[id(module)].removeprefix(template.format(0))

    anatomy = Anatomy(
        body=paths[id(body)],
        block=template,
        attn=inside(attn),
        mlp=inside(mlp),
        attn_out=inside(_output_matrix(attn, width)),
        mlp_out=inside(_output_matrix(mlp, width)),
        norm=paths[id(_final_norm(body, layers, width))],
        head=paths[id(head)],
        n_layers=len(layers),
    )
    _check_layers_alike(model, anatomy)
    return anatomy


def _body_and_layers(model: PreTrainedModel) -> tuple[nn.Module, nn.ModuleList]:
    """The module that maps ids to last hidden states, and its layers; in a multimodal model those that read text."""
    if model.config.is_encoder_decoder:
        raise InputError(f"{type(model).__name__} is an encoder-decoder; give a causal (decoder-only) language model")
    for body in (model.base_model, model.get_decoder(), getattr(model, "model", model)):
        stacks = [m for m in body.children() if isinstance(m, nn.ModuleList)]
        if len(stacks) == 1 and len(stacks[0]) and body is not model:
            return body, stacks[0]
    what = "is an encoder" if getattr(model.config, "is_decoder", True) is False else "has not one stack of layers"
    raise InputError(f"{type(model).__name__} {what}; give a causal (decoder-only) language model")


def _attention_and_mlp(layers: nn.ModuleList) -> tuple[nn.Module, nn.Module]:
    first = layers[0]
    parts = [(name, m) for name, m in first.named_children() if any(is_matrix(k) for k in m.modules())]
    attends = [(name, m) for name, m in parts if "attention_mask" in inspect.signature(m.forward).parameters]
    computes = [part for part in parts if part not in attends]
    if len(attends) != 1 or len(computes) != 1:
        raise InputError(
            f"{type(first).__name__}: a layer needs one attention and one MLP, each a module of its own, but its parts "
            f"are {', '.join(name for name, _ in parts)}; give a model of another architecture"
        )
    return attends[0][1], computes[0][1]


def _check_dense(config: PretrainedConfig, layers: nn.ModuleList) -> None:
    """Raises InputError if the MLP of a layer is a mixture of experts: the config counts them, and a module of the
    layer holds several, as a list or stacked in parameters [experts, ...]."""
    if not any("expert" in name and isinstance(n, int) and n > 1 for name, n in config.to_dict().items()):
        return
    for i, layer in enumerate(layers):
        lists = [m for m in layer.modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
        stacked = [p for p in layer.parameters() if p.ndim == 3]
        if lists or stacked:
            raise InputError(
                f"{type(layer).__name__}: the MLP of layer {i} is a mixture of experts, and kedit edits layers that "
                "have one MLP; give a dense model"
            )


def is_matrix(module: nn.Module) -> bool:
    """Does it multiply by one weight, [o i] or (Conv1D) [i o]?"""
    return isinstance(module, nn.Linear | Conv1D)


def _output_matrix(part: nn.Module, width: int) -> nn.Module:
    """The last matrix that maps to the residual stream; Conv1D stores (in, out), Linear (out, in)."""
    linear = [m for m in part.modules() if isinstance(m, nn.Linear) and m.weight.shape[0] == width]
    conv = [m for m in part.modules() if isinstance(m, Conv1D) and m.weight.shape[1] == width]
    if not linear and not conv:
        raise InputError(
            f"{type(part).__name__}: none of its matrices writes to the residual stream of width {width}; give a model "
            "of another architecture"
        )
    return (linear or conv)[-1]


def _final_norm(body: nn.Module, layers: nn.ModuleList, width: int) -> nn.Module:
    """The last module of the body with a parameter [width]; if there is none (OLMo), the norm behind the layers."""
    modules = list(body.children())
    norms = [m for m in modules if any(p.shape == (width,) for p in m.parameters(recurse=False))]
    behind = [m for m in modules[modules.index(layers) :] if "norm" in type(m).__name__.lower()]
    if not norms and not behind:
        raise InputError(
            f"{type(body).__name__}: it has no norm after its last layer; give a model of another architecture"
        )
    return (norms or behind)[-1]


def _check_layers_alike(model: PreTrainedModel, anatomy: Anatomy) -> None:
    """Raises InputError if a layer has other parts than the first one, as in models that mix attention with Mamba."""
    for part in (anatomy.attn, anatomy.mlp, anatomy.attn_out, anatomy.mlp_out):
        first = model.get_submodule(part.format(0))
        for i in range(anatomy.n_layers):
            try:
                other = model.get_submodule(part.format(i))
            except AttributeError:
                other = None
            if type(other) is not type(first):
                raise InputError(
                    f"{type(model).__name__}: {part.format(i)} is not as in layer 0, so its layers are not alike; give "
                    "a model in which every layer has attention and an MLP"
                )
