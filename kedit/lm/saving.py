"""A model as a transformers directory: with what adapters change added to its weights."""

from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from kedit.common.errors import InputError


def save_merged(model: PreTrainedModel, folder: Path) -> None:
    """Write the model so that AutoModelForCausalLM loads it without peft. The model itself is left as it is."""
    model.save_pretrained(folder, state_dict=merged_state(model))


def no_adapter(folder: Path) -> None:
    """What saves the adapter of a model that has none."""
    raise InputError("save=adapter: the edits left no adapter in the model; give save=true")


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the bare model, W + BA for each matrix W that an active adapter changes."""
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        name = next((name for name in adapted if key.startswith(f"{name}.")), None)
        inner = key.removeprefix(f"{name}.")
        if name is None:
            state[key] = value
        elif inner.startswith("base_layer."):
            leaf = inner.removeprefix("base_layer.")
            state[f"{name}.{leaf}"] = value + _change(adapted[name], value) if leaf == "weight" else value
    return state


def _change(layer: BaseTunerLayer, weight: Tensor) -> Tensor:
    changes = [layer.get_delta_weight(adapter) for adapter in layer.active_adapters]  # type: ignore[attr-defined]
    return sum(changes, torch.zeros_like(weight, dtype=torch.float32)).to(weight)
