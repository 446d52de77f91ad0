"""What all fine-tuning shares: which parameters, which loss, which examples; how they are trained is a subclass's."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from kedit.cases import Edit
from kedit.common.errors import InputError
from kedit.common.options import Amount, Count, Layers, ModelPart, Rate, Rule, ShareBelowOne, matches
from kedit.editors.extra_examples import WithExamples
from kedit.editors.finetune.lora import LoRA
from kedit.lm import LM
from kedit.lm.text import Mask
from kedit.lm.trained import Trained
from kedit.losses import Loss

log = logging.getLogger(__name__)

PowerLaw = Annotated[str, matches("power_law"), Rule("power_law")]


@dataclass(kw_only=True, eq=False)
class Tuner(WithExamples):
    """The parts of a fine-tuning editor.

    `parameters` is a part of the model ("mlp_out.weight", "block", "model", ...: see kedit.lm.anatomy) in `layers`, or
    in the one layer at relative `depth` where layers is null. With an `adapter` its parameters are trained instead, in
    `layers` (null: all). `examples` are trained with each edit (kedit.editors.extra_examples). `mask`: which tokens of
    a prompt and answer are trained. `trained_dtype`: of a model in bfloat16 or float16, float32 trains a master copy of
    the parameters that lives for the whole run; "model" lets the optimiser step the low-precision weights themselves.
    """

    loss: Loss
    lr: Rate
    batch_size: Count = 1
    stop_loss: Amount | None = None
    parameters: ModelPart | None = "mlp_out.weight"
    layers: Layers | None = None
    depth: ShareBelowOne = 21 / 32
    adapter: LoRA | None = None
    weight_decay: Amount | PowerLaw = 0.0
    mask: Mask = "positional"
    trained_dtype: Literal["float32", "model"] = "float32"

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

    draws_by_edit: ClassVar[bool] = False  # are dropout's draws each edit's own?

    @property
    def side_by_side(self) -> bool:  # type: ignore[override]
        return self.adapter is None and self.parameters != "model"  # which are also the embeddings and the head

    def variant_bytes(self, lm: LM) -> int:
        """Each trained entry: its value, and in the leaf's precision its gradient, Adam's two moments, the value at the
        start; a float32 master, where the model has a lower precision."""
        if self.adapter:
            return self.adapter.variant_bytes(lm, self.layers)
        total = 0
        for parameter in map(lm.parameter, self.edited_parameters(lm)):
            own = parameter.element_size()
            leaf = max(4, own) if self.trained_dtype == "float32" else own
            total += parameter.numel() * (own + (5 if leaf > own else 4) * leaf)
        return total

    @property
    def keeps_adapter(self) -> bool:  # type: ignore[override]
        return self.adapter is not None and not self.adapter.merge

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
    def tuned(self, lm: LM) -> Iterator[Trained]:
        """The parameters to train; they, and no others, receive gradients inside, and nothing of it is left behind."""
        trained = self._trained(lm)
        try:
            with trained.receiving():
                yield trained
            self._close(lm)
        except BaseException:
            self._abandon(lm)
            raise

    def _trained(self, lm: LM) -> Trained:
        masters = self.trained_dtype == "float32"
        if self.adapter:
            return Trained(self.adapter.open(lm, self.layers, masters, self.draws_by_edit))
        names = self.edited_parameters(lm)
        parameters = lm.track(names, master=masters)
        return Trained(dict(zip(names, parameters, strict=True)), lm.masters if masters else {})

    def _close(self, lm: LM) -> None:
        """The edit is made. Raises FloatingPointError if it went wrong."""
        if self.adapter:
            self.adapter.close(lm)

    def _abandon(self, lm: LM) -> None:
        """The edit has failed."""
        if self.adapter:
            self.adapter.abandon(lm)

    def decay(self, n_edits: int) -> float:
        """The weight decay; "power_law" is that of FT-W, fitted by the MEMIT authors: n^-0.870 · e^0.156."""
        return n_edits**-0.87028798 * math.exp(0.15589562) if isinstance(self.weight_decay, str) else self.weight_decay

    def fork(self) -> "Tuner":
        other = copy(self)
        if other.adapter:
            other.adapter = other.adapter.fork()
        return other

    def reset(self) -> None:
        if self.adapter:
            self.adapter.reset()

    def state(self) -> dict[str, Tensor | str]:
        return dict(self.adapter.state()) if self.adapter else {}

    def load_state(self, lm: LM, state: Mapping[str, Tensor | str]) -> None:
        if self.adapter:
            self.adapter.load_state(lm, self.layers, {k: v for k, v in state.items() if isinstance(v, Tensor)})


def moved(trained: Trained) -> dict[str, float]:
    """For the report of an edit: which share of low-precision weights it moved; empty for a float32 model."""
    share = trained.moved_share()
    if share is None:
        return {}
    log.info("%.1f %% of the trained entries moved", 100 * share)
    return {"moved_share": round(share, 4)}


def finite(loss: Float[Tensor, ""]) -> float:
    """Its value. Raises FloatingPointError where it is not finite."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value}")
    return value
