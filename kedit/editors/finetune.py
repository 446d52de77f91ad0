"""Fine-tuning editors: which parameters x which loss x when to stop. FT-M and KDPO are yamls over this loop."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from statistics import mean

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kedit.cases import Edit
from kedit.editors import Editor
from kedit.errors import InputError
from kedit.lm import LM
from kedit.lm.text import Batch
from kedit.losses import Loss


class FineTune(Editor):
    """Adam on the chosen parameters, fresh for each edit, `cycles` x `steps` passes over the edits.

    `parameters` is a part of the model ("mlp_out.weight", "block", ...: see kedit.lm.anatomy) in `layers`, or in the
    one layer at relative `depth` where layers is null. A batch whose loss is below `stop_loss` takes no step; a pass
    whose mean loss is below it ends its cycle. `norm_constraint` keeps each weight within ± that of its value at the
    start of the edit.
    """

    def __init__(
        self,
        *,
        loss: Loss,
        lr: float,
        steps: int,
        cycles: int = 1,
        stop_loss: float | None = None,
        parameters: str = "mlp_out.weight",
        layers: Sequence[int] | None = None,
        depth: float = 21 / 32,
        weight_decay: float = 0.0,
        norm_constraint: float | None = None,
        batch_size: int = 1,
    ):
        if not isinstance(loss, Loss):
            raise InputError(f"editor.loss={loss!r} is not a loss; losses are chosen with a slash: editor/loss={loss}")
        if steps < 1 or cycles < 1 or batch_size < 1:
            raise InputError(f"editor.steps={steps}, cycles={cycles}, batch_size={batch_size}: each must be at least 1")
        self.loss, self.lr, self.steps, self.cycles = loss, lr, steps, cycles
        self.stop_loss = -math.inf if stop_loss is None else stop_loss
        self.parameters, self.layers, self.depth = parameters, layers, depth
        self.weight_decay, self.norm_constraint, self.batch_size = weight_decay, norm_constraint, batch_size

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        if not edits:
            return {}
        layers = self.layers if self.layers is not None else [lm.anatomy.layer(self.depth)]
        parameters = lm.track(lm.anatomy.parameters(lm.model, self.parameters, layers))
        chunks = [edits[i : i + self.batch_size] for i in range(0, len(edits), self.batch_size)]
        batches = [lm.encode([e.prompt for e in chunk], [e.target_new for e in chunk]) for chunk in chunks]
        with trainable(parameters):
            losses = self._train(lm, parameters, [Task(batch, copy(self.loss)) for batch in batches])
        return {"steps": len(losses), "loss": losses[-1] if losses else 0.0}

    def _train(self, lm: LM, parameters: Sequence[nn.Parameter], tasks: Sequence["Task"]) -> list[float]:
        """The loss before each optimiser step."""
        optimizer = torch.optim.Adam(parameters, lr=self.lr, weight_decay=self.weight_decay)
        start = [p.detach().clone() for p in parameters] if self.norm_constraint is not None else []
        taken: list[float] = []
        for cycle in range(self.cycles):
            for step in range(self.steps):
                losses = []
                for task in tasks:
                    loss = task.loss_at(lm, cycle, step)
                    if loss is None:
                        continue
                    losses.append(finite(loss))
                    if losses[-1] >= self.stop_loss:
                        self._update(optimizer, loss, parameters, start)
                        taken.append(losses[-1])
                if not losses or mean(losses) < self.stop_loss:
                    break
            if not losses:
                break
        return taken

    def _update(self, optimizer: torch.optim.Adam, loss: Tensor, parameters: Sequence[Tensor], start: list) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for parameter, origin in zip(parameters, start, strict=False):  # start is empty where nothing constrains
            parameter.data.clamp_(origin - self.norm_constraint, origin + self.norm_constraint)


@dataclass
class Task:
    """A batch of edits with its own copy of the loss."""

    batch: Batch
    loss: Loss
    learnt: bool = False  # nothing was left to learn when the cycle began

    def loss_at(self, lm: LM, cycle: int, step: int) -> Float[Tensor, ""] | None:
        """None where nothing is left to learn in this cycle."""
        if step and self.learnt:
            return None
        logits = lm.answer_logits(self.batch)
        if step == 0:
            self.learnt = self.loss.refresh(self.batch, logits, cycle)
        return None if self.learnt else self.loss(self.batch, logits).mean()


def finite(loss: Float[Tensor, ""]) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value}")
    return value


@contextmanager
def trainable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """These parameters, and no others, receive gradients inside; nothing of it is left behind."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
