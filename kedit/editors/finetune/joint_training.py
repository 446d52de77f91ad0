"""The training of one edit, or of several side by side: they share each pass of the model; everything else is their
own."""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import accumulate
from statistics import mean
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from kedit.cases import Edit
from kedit.lm import LM
from kedit.lm.dropout import Draws
from kedit.lm.partial_forward import TrainingForward
from kedit.lm.trained import StartOfAll, StartWeights, Trained
from kedit.losses import LossInputs

if TYPE_CHECKING:
    from kedit.editors.finetune.per_edit import FineTune


@dataclass(eq=False)
class Part:
    """One edit's part in a training: what it trains, and how far it is."""

    editor: "FineTune"
    batches: Sequence[Sequence[Edit]]  # each a list of facts
    n_edits: int
    trained: Trained
    start: StartWeights
    variant: int | None = None  # number of the edited model that it trains; None: the model itself
    draws: Draws | None = None  # its dropout's
    taken: list[float] = field(default_factory=list)  # the loss before each of its steps
    losses: list[float] = field(default_factory=list)  # one for each batch of this pass
    in_cycle: bool = True
    ended: bool = False
    failure: FloatingPointError | None = None

    def hear(self, loss: float, cycle: int, step: int) -> bool:
        """The loss of one of its batches; returns whether it takes a step."""
        if not math.isfinite(loss):
            self.failure, self.in_cycle, self.ended = FloatingPointError(f"the loss is {loss}"), False, True
            return False
        self.losses.append(loss)
        return not self._enough(loss, cycle, step)

    def stepped(self, loss: float) -> None:
        """A step was taken at this loss."""
        if self.editor.adapter:
            self.editor.adapter.stepped(len(self.taken))
        self.taken.append(loss)
        if self.editor.on_step:
            self.editor.on_step(len(self.taken), loss)

    def end_pass(self, cycle: int, step: int) -> None:
        """All its batches were passed over."""
        if not self.losses:
            self.in_cycle, self.ended = False, True
        elif self._enough(mean(self.losses), cycle, step):
            self.in_cycle, self.ended = False, cycle == self.editor.cycles - 1

    def _enough(self, loss: float, cycle: int, step: int) -> bool:
        stop, stuck = self.editor.stop_loss, self.editor.stuck_loss
        is_stuck = stuck is not None and cycle == 0 and step >= 2 and abs(loss - stuck) < 5e-5
        return is_stuck or (stop is not None and loss < stop)


class JointTraining:
    """Adam, `cycles` x `steps` passes over the batches of every part.

    Gradients, moments, stop rules and cycles are each part's own; parts that leave a cycle early wait for its end.
    """

    def __init__(self, lm: LM, parts: Sequence[Part]):
        self.lm, self.parts, self.editor = lm, parts, parts[0].editor
        most = max(len(part.batches) for part in parts)
        self.batches = [JointBatch(lm, [part for part in parts if i < len(part.batches)], i) for i in range(most)]
        leaves: dict[float, list[Tensor]] = {}
        for part in parts:
            leaves.setdefault(self.editor.decay(part.n_edits), []).extend(part.trained.leaves)
        groups = [{"params": params, "weight_decay": decay} for decay, params in leaves.items()]
        self.optimizer = torch.optim.Adam(groups, lr=self.editor.lr, fused=True)

    def run(self) -> None:
        for cycle in range(self.editor.cycles):
            for part in self.parts:
                part.in_cycle = not part.ended
            for step in range(self.editor.steps):
                self._pass(cycle, step)

    def _pass(self, cycle: int, step: int) -> None:
        """Over all batches once."""
        passing = [part for part in self.parts if part.in_cycle]
        for part in passing:
            part.losses = []
        for batch in self.batches:
            batch.drop_ended()
            if any(part.in_cycle for part in batch.parts):
                self._step(batch, cycle, step)
        for part in passing:
            if part.in_cycle:
                part.end_pass(cycle, step)

    def _step(self, batch: "JointBatch", cycle: int, step: int) -> None:
        losses = batch.losses(cycle, step)
        if losses is None:
            return
        stepping = {}
        for part, loss, rests in zip(batch.parts, *batch.read(losses), strict=True):
            if part.in_cycle and not batch.learnt[part] and part.hear(loss, cycle, step) and not rests:
                stepping[part] = loss
        if stepping:
            self._update(batch, losses.sum(), list(stepping))
            for part, loss in stepping.items():
                part.stepped(loss)

    def _update(self, batch: "JointBatch", loss: Float[Tensor, ""], stepping: Sequence[Part]) -> None:
        """One optimiser step of these parts; the gradients of others are dropped."""
        self.optimizer.zero_grad()
        regularisers = (part.editor.adapter.regulariser() for part in stepping if part.editor.adapter)
        loss = sum((term for term in regularisers if term is not None), loss)
        loss.backward()
        self.lm.hand_over_gradients()
        for part in self.parts:
            if part in stepping:
                part.trained.hand_over()
            else:
                part.trained.forget_gradients()
        self.optimizer.step()
        for part in stepping:
            part.trained.write()
            part.start.moved = True
            if self.editor.norm_constraint is not None:
                part.start.clamp(self.editor.norm_constraint)


class JointBatch:
    """The i-th batch of every part that has one, as rows of one batch, with a loss of its own."""

    def __init__(self, lm: LM, parts: Sequence[Part], i: int):
        self.parts, self.sizes = list(parts), [len(part.batches[i]) for part in parts]
        editor, facts = parts[0].editor, [fact for part in parts for fact in part.batches[i]]
        variants = [part.variant or 0 for part in parts for _ in part.batches[i]]
        batch = lm.encode([f.prompt for f in facts], [f.target_new for f in facts], editor.mask, variants)
        self.passes = TrainingForward(lm, parts[0].trained.names)
        self.view = LossInputs(lm, facts, batch, StartOfAll([part.start for part in parts]), self.passes)
        self.loss = deepcopy(editor.loss)
        self.learnt = dict.fromkeys(self.parts, False)  # nothing was left to learn when the cycle began

    def losses(self, cycle: int, step: int) -> Float[Tensor, " m"] | None:
        """The mean over each part's rows; None if in this cycle nothing is left to learn for any part."""
        if step == 0:
            self._draw_for([part for part in self.parts if part.in_cycle])
            logits = self.view.logits()
            learnt = self.loss.refresh(self.view, logits, cycle)
            if learnt is not None:
                self.learnt = dict(zip(self.parts, self._all(learnt).tolist(), strict=True))
        if all(self.learnt.values()):
            return None
        self._draw_for([part for part in self.parts if part.in_cycle and not self.learnt[part]])
        read = self.loss.reads(self.view)
        if step or read is not self.view.batch:
            logits = self.view.logits(read)
        return self._mean(self.loss(self.view, logits))

    def _draw_for(self, parts: Sequence[Part]) -> None:
        """In the next passes dropout draws for these; others only wait, and must not use up their numbers."""
        self.passes.draws.clear()
        self.passes.draws |= {part.variant or 0: part.draws for part in parts if part.draws}

    def read(self, losses: Float[Tensor, " m"]) -> tuple[list[float], list[float]]:
        """The losses, and of which parts every row is idle: in one copy from the device."""
        idle = self.loss.idle()
        if idle is None:
            return losses.tolist(), [0.0] * len(self.parts)
        values, rests = torch.stack([losses.detach(), self._all(idle).to(losses)]).tolist()
        return values, rests

    def drop_ended(self) -> None:
        """The rows of parts that have ended leave the batch."""
        staying = [not part.ended for part in self.parts]
        if all(staying) or not any(staying):
            return
        starts = accumulate(self.sizes, initial=0)
        spans = [range(start, start + size) for start, size in zip(starts, self.sizes, strict=False)]
        rows = [row for span, stays in zip(spans, staying, strict=True) if stays for row in span]
        self.parts = [part for part, stays in zip(self.parts, staying, strict=True) if stays]
        self.sizes = [size for size, stays in zip(self.sizes, staying, strict=True) if stays]
        index = torch.tensor(rows, device=self.view.batch.row.device)
        batch, places = self.passes.rows_of(self.view.batch, index)
        start = StartOfAll([part.start for part in self.parts])
        self.view = replace(self.view, facts=[self.view.facts[row] for row in rows], batch=batch, start=start)
        self.loss.keep(self.view, index, places)

    def _mean(self, values: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
        """Over each part's rows. What is not finite in one part stays there."""
        if len(set(self.sizes)) == 1:
            return values.view(len(self.sizes), -1).mean(1)
        return torch.stack([part.mean() for part in values.split(self.sizes)])

    def _all(self, rows: Tensor) -> Tensor:
        return self._mean(rows.float()) == 1
