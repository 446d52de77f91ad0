"""The two ways in which an adapter is in a model: as modules that peft puts there, or in one of several variants."""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from kedit.lm import LM
from kedit.lm.matrices import add_to_matrices

NAME = "default"  # peft's, of the only adapter


class PeftAdapter:
    """Modules that peft has put around the model's own."""

    def __init__(self, lm: LM, tuner: Any):
        self.lm, self.tuner = lm, tuner
        self.tuner.eval()

    @property
    def layers(self) -> dict[str, Any]:
        """The modules, by the names of the matrices that they change."""
        return {name: m for name, m in self.lm.model.named_modules() if isinstance(m, BaseTunerLayer)}

    def parameters(self) -> dict[str, nn.Parameter]:
        """By their names in the model."""
        return {name: p for name, p in self.lm.model.named_parameters() if "lora_" in name}

    @torch.no_grad()
    def merge(self) -> None:
        """Take it out of the model and add what it changed to the weights."""
        changes: dict[str, Tensor] = {f"{n}.weight": m.get_delta_weight(NAME) for n, m in self.layers.items()}
        self.remove()
        self.lm.add(changes)

    def remove(self) -> None:
        """The model's own modules again."""
        self.tuner.unload()
        vars(self.lm.model).pop("peft_config", None)  # what peft may leave behind


class VariantAdapter:
    """Factors A and B of each matrix in the present variant of the model (kedit.lm.low_rank), whose modules stay its
    own; under the names that peft gives them."""

    def __init__(self, lm: LM, matrices: Sequence[str], rank: int, scale: float, dropout: float, dtype: torch.dtype):
        assert lm.variants is not None
        assert lm.variants.current is not None, "a variant is changed inside its scope only"
        self.lm, self.variants, self.variant = lm, lm.variants, lm.variants.current
        self.held = {name: self.variants.own_low_rank(name, rank, scale, dropout, dtype) for name in matrices}

    def parameters(self) -> dict[str, nn.Parameter]:
        found = {}
        for name, held in self.held.items():
            found[f"{name}.lora_A.{NAME}.weight"] = held.a.parts[self.variant]
            found[f"{name}.lora_B.{NAME}.weight"] = held.b.parts[self.variant]
        return found

    def merge(self) -> None:
        changes = {name: held.change(self.variant) for name, held in self.held.items()}
        self.remove()
        add_to_matrices(self.lm, changes)

    def remove(self) -> None:
        self.variants.drop_low_rank(self.variant, list(self.held))
