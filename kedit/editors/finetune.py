"""Fine-tuning editors: which parameters x which loss x when to stop. FT-M and KDPO are yamls over this loop."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy

import torch
from torch import nn

from kedit.cases import Edit
from kedit.editors import Editor
from kedit.errors import InputError
from kedit.lm import LM
from kedit.losses import Loss


class FineTune(Editor):
    """Adam on the chosen parameters, fresh for each edit, `cycles` x `steps` passes over the edits.

    `parameters` is a part of the model ("mlp_out.weight", "block", ...: see kedit.lm.anatomy) in `layers`, or in the
    one layer at relative `depth` where layers is null. A pass whose mean loss is below `stop_loss` ends its cycle; a
    batch below it takes no step. `norm_constraint` keeps each weight within ± that of its value at the start of the
    edit.
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
        self.loss, self.lr, self.steps, self.cycles, self.stop_loss = loss, lr, steps, cycles, stop_loss
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
            losses = list(self._train(lm, parameters, [(batch, copy(self.loss)) for batch in batches]))
        return {"steps": len(losses), "loss": losses[-1] if losses else 0.0}

    def _train(self, lm: LM, parameters: Sequence[nn.Parameter], tasks: list) -> Iterator[float]:
        """Yields the loss before each optimiser step."""
        optimizer = torch.optim.Adam(parameters, lr=self.lr, weight_decay=self.weight_decay)
        start = [p.detach().clone() for p in parameters] if self.norm_constraint is not None else []
        for cycle in range(self.cycles):
            unlearnt = list(tasks)
            for step in range(self.steps):
                seen = []
                for task in list(unlearnt):
                    batch, loss = task
                    logits = lm.answer_logits(batch)
                    if step == 0 and loss.refresh(batch, logits, cycle):
                        unlearnt.remove(task)
                        continue
                    value = loss(batch, logits).mean()
                    seen.append(finite(value))
                    if self.stop_loss is not None and seen[-1] < self.stop_loss:
                        continue
                    optimizer.zero_grad()
                    value.backward()
                    optimizer.step()
                    self._constrain(parameters, start)
                    yield seen[-1]
                if not seen:
                    return
                if self.stop_loss is not None and sum(seen) / len(seen) < self.stop_loss:
                    break

    @torch.no_grad()
    def _constrain(self, parameters: Sequence[nn.Parameter], start: Sequence[torch.Tensor]) -> None:
        for parameter, origin in zip(parameters, start, strict=False):
            within = self.norm_constraint or 0.0
            parameter.clamp_(origin - within, origin + within)


def finite(loss: torch.Tensor) -> float:
    value = float(loss.detach())
    if value != value or value in (float("inf"), float("-inf")):
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
