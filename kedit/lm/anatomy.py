"""Where a causal language model keeps its layers, MLP and attention outputs, final norm and head: by inspection, not
by name."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kedit.common.errors import InputError

PARTS = ("mlp_out", "attn_out", "mlp", "attn", "block", "model")


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Module paths; "{}" stands for a layer's index. Known to hold for Llama, Qwen2, Mistral, Gemma, GPT-2 and
    GPT-J."""

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
        """The first layer that a parameter of these names is in, 0 where one is in no layer (embeddings, the head)."""
        before = self.block.partition("{}")[0]
        inside = [name.removeprefix(before).partition(".")[0] for name in names if name.startswith(before)]
        return min(map(int, inside)) if inside and len(inside) == len(names) else 0

    def mlp_width(self, model: nn.Module, layer: int) -> int:
        """How many numbers enter the MLP's output matrix of this layer: f."""
        matrix = model.get_submodule(self.mlp_out.format(layer))
        return matrix.weight.shape[0 if isinstance(matrix, Conv1D) else 1]  # type: ignore[index, return-value]

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raises InputError where the model has no such layer, or none is given."""
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


def inspect_anatomy(model: PreTrainedModel) -> Anatomy:
    """Find the parts from structure: layers are the body's module list, attention takes a mask, the MLP does not."""
    paths = {id(module): name for name, module in model.named_modules()}
    body, head = model.base_model, model.get_output_embeddings()
    stacks = [m for m in body.children() if isinstance(m, nn.ModuleList)]
    if len(stacks) != 1 or head is None or body is model:
        raise InputError(
            f"{type(model).__name__}: not a decoder with one stack of layers and a head; give a causal language model"
        )
    layers = stacks[0]
    attn, mlp = _attention_and_mlp(layers[0])
    width = model.config.hidden_size
    after = [m for m in body.children() if any(p.shape == (width,) for p in m.parameters(recurse=False))]
    template = paths[id(layers)] + ".{}"

    def inside(module: nn.Module) -> str:
        return template + paths[id(module)].removeprefix(template.format(0))

    return Anatomy(
        body=paths[id(body)],
        block=template,
        attn=inside(attn),
        mlp=inside(mlp),
        attn_out=inside(_output_matrix(attn, width)),
        mlp_out=inside(_output_matrix(mlp, width)),
        norm=paths[id(after[-1])],
        head=paths[id(head)],
        n_layers=len(layers),
    )


def _attention_and_mlp(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    parts = [m for m in block.children() if any(_is_matrix(k) for k in m.modules())]
    attends = [m for m in parts if "attention_mask" in inspect.signature(m.forward).parameters]
    computes = [m for m in parts if m not in attends]
    if len(attends) != 1 or len(computes) != 1:
        raise InputError(
            f"{type(block).__name__}: a layer needs one attention and one MLP, not {len(attends)} and {len(computes)}"
        )
    return attends[0], computes[0]


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _output_matrix(part: nn.Module, width: int) -> nn.Module:
    """The last matrix that maps to the residual stream; Conv1D stores (in, out), Linear (out, in)."""
    linear = [m for m in part.modules() if isinstance(m, nn.Linear) and m.weight.shape[0] == width]
    conv = [m for m in part.modules() if isinstance(m, Conv1D) and m.weight.shape[1] == width]
    return (linear or conv)[-1]
