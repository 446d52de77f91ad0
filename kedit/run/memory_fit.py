"""How much memory a cell needs, from the shapes of its model alone: said before anything is loaded."""

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from kedit.lm import LM
from kedit.lm.anatomy import inspect_anatomy

log = logging.getLogger(__name__)
ACTIVATIONS = 1.1  # batches, logits and what a forward pass holds, beside weights and what editing adds
GB = 2**30


@dataclass(frozen=True)
class Needs:
    """Bytes."""

    weights: int
    editing: int  # at the peak of an edit: values, gradients, moments, what `restore` brings back

    @property
    def total(self) -> float:
        return (self.weights + self.editing) * ACTIVATIONS

    def __str__(self) -> str:
        parts = f"weights {self.weights / GB:.1f}, editing {self.editing / GB:.1f}"
        return f"about {self.total / GB:.1f} GB of memory ({parts})"


class Shapes(LM):
    """The parameters of a model without weights: which parameters there are, and where."""

    def __init__(self, model: PreTrainedModel):
        self.model, self.anatomy = model, inspect_anatomy(model)


def needs(config: Any, dtype: str, editor: Any) -> Needs:
    """The estimate for a model of this transformers config in this precision, edited by this editor."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return Needs(weights, editor.variant_bytes(Shapes(model)))


def said(path: str, options: dict[str, Any], editor: Any) -> Iterator[str]:
    """One line about what a cell needs and what there is; none if its model's shape is not known beforehand."""
    known = {name: options[name] for name in ("revision", "trust_remote_code") if name in options}
    try:
        needed = needs(AutoConfig.from_pretrained(path, **known), options.get("dtype", "float32"), editor)
    except (
        OSError,
        ValueError,
        AttributeError,
        KeyError,
        TypeError,
        RuntimeError,
    ) as error:  # loading it says what is wrong
        log.debug("no estimate of memory: %s", error)
        return
    if needed.editing >= sys.maxsize:  # the editor does not say
        return
    there = sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count()))
    if not there:
        yield f"{path}: {needed}"
    elif needed.total <= there:
        yield f"{path}: {needed}; the GPUs have {there / GB:.1f} GB free"
    else:
        yield (
            f"{path}: {needed}, and the GPUs have {there / GB:.1f} GB free: it will probably not fit; "
            "give model.dtype=bfloat16, more GPUs (gpus.per_cell), or an editor of fewer parameters"
        )
