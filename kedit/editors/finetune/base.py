"""What all fine-tuning shares: which parameters, which loss, which examples; how they are trained is a subclass's."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from kedit.cases import Edit
from kedit.common.errors import InputError
from kedit.editors.extra_examples import WithExamples
from kedit.editors.finetune.lora import LoRA
from kedit.lm import LM
from kedit.lm.text import Mask
from kedit.losses import Loss


@dataclass(kw_only=True, eq=False)
class Tuner(WithExamples):
    """The parts of a fine-tuning editor.

    `parameters` is a part of the model ("mlp_out.weight", "block", "model", ...: see kedit.lm.anatomy) in `layers`, or
    in the one layer at relative `depth` where layers is null. With an `adapter` its parameters are trained instead, in
    `layers` (null: all). `examples` are trained with each edit (kedit.editors.extra_examples). `mask`: which tokens of
    a prompt and answer are trained.
    """

    loss: Loss
    lr: float
    batch_size: int = 1
    stop_loss: float | None = None
    parameters: str | None = "mlp_out.weight"
    layers: Sequence[int] | None = None
    depth: float = 21 / 32
    adapter: LoRA | None = None
    weight_decay: float | str = 0.0
    mask: Mask = "positional"

    def __post_init__(self) -> None:
        if not isinstance(self.loss, Loss):
            given = f"editor.loss={self.loss!r}"
            raise InputError(f"{given} is not a loss; losses are chosen with a slash: editor/loss={self.loss}")
        if (self.parameters is None) == (self.adapter is None):
            adapter = "null" if self.adapter is None else type(self.adapter).__name__
            raise InputError(
                f"editor.parameters={self.parameters} and editor/adapter={adapter}: one of the two is trained; "
                "set the other to null"
            )
        if isinstance(self.weight_decay, str) and self.weight_decay != "power_law":
            raise InputError(f"editor.weight_decay={self.weight_decay}: give a number, or power_law")

    def facts(self, edit: Edit) -> list[Edit]:
        """What is trained for one edit: the edit, and its examples."""
        return [edit, *self.examples_of(edit)]

    def edited_parameters(self, lm: LM) -> Sequence[str]:
        part = "block" if self.adapter else str(self.parameters)
        return lm.anatomy.parameters(lm.model, part, self._layers(lm))

    def _layers(self, lm: LM) -> Sequence[int]:
        if self.layers is not None:
            return self.layers
        return range(lm.anatomy.n_layers) if self.adapter else [lm.anatomy.layer(self.depth)]

    @contextmanager
    def tuned(self, lm: LM) -> Iterator[list[nn.Parameter]]:
        """The parameters to train; they, and no others, receive gradients inside, and nothing of it is left behind."""
        parameters = self.adapter.open(lm, self.layers) if self.adapter else lm.track(self.edited_parameters(lm))
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            yield parameters
            if self.adapter:
                self.adapter.close(lm)
        except BaseException:
            if self.adapter:
                self.adapter.abandon(lm)
            raise
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)
                parameter.grad = None

    def decay(self, n_edits: int) -> float:
        """The weight decay; "power_law" is that of FT-W, fitted by the MEMIT authors: n^-0.870 · e^0.156."""
        return n_edits**-0.87028798 * math.exp(0.15589562) if isinstance(self.weight_decay, str) else self.weight_decay

    def reset(self) -> None:
        if self.adapter:
            self.adapter.reset()

    def state(self) -> dict[str, Tensor | str]:
        return dict(self.adapter.state()) if self.adapter else {}

    def load_state(self, lm: LM, state: Mapping[str, Tensor | str]) -> None:
        if self.adapter:
            self.adapter.load_state(lm, self.layers, {k: v for k, v in state.items() if isinstance(v, Tensor)})


def finite(loss: Float[Tensor, ""]) -> float:
    """Its value. Raises FloatingPointError where it is not finite."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value}")
    return value
