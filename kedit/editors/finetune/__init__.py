"""The fine-tuning family: which parameters x which loss x which examples x when to stop."""

from kedit.editors.finetune.epochs import StandardFineTune
from kedit.editors.finetune.lora import AdaLoRA, LoRA
from kedit.editors.finetune.per_edit import FineTune

__all__ = ["AdaLoRA", "FineTune", "LoRA", "StandardFineTune"]
