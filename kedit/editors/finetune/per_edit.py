"""Fine-tuning one edit at a time: FT-L, FT-M, LoRA, DPO, KDPO and every "+ OVERTONE" are yamls over this loop."""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import mean
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from kedit.cases import Edit
from kedit.common.errors import InputError
from kedit.common.options import Amount, Count, Positive
from kedit.editors.finetune.base import Tuner, finite, moved
from kedit.lm import LM
from kedit.lm.partial_forward import TrainingForward
from kedit.lm.trained import StartWeights
from kedit.losses import Loss, LossInputs


@dataclass(kw_only=True, eq=False)
class FineTune(Tuner):
    """Adam, fresh for each edit, `cycles` x `steps` passes over the edit (with its examples one batch).

    Edits given together are passed over in batches of `batch_size`. A batch whose loss is below `stop_loss` takes no
    step; a pass whose mean loss is below it ends its cycle. `stuck_loss`: the first cycle ends where from its third
    step on the loss is still this, to four decimals. `norm_constraint` keeps each weight within ± that of its value at
    the start of the edit. `delta_times` adds the edit's change that many times.
    """

    reports_steps: ClassVar[bool] = True

    steps: Count
    cycles: Count = 1
    stuck_loss: Amount | None = None
    norm_constraint: Positive | None = None
    delta_times: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.cycles < 1 or self.batch_size < 1:
            given = f"editor.steps={self.steps}, cycles={self.cycles}, batch_size={self.batch_size}"
            raise InputError(f"{given}: each must be at least 1")

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        if not edits:
            return {}
        chunks = [edits[i : i + self.batch_size] for i in range(0, len(edits), self.batch_size)]
        with self.tuned(lm) as trained:
            keep = self.loss.uses_reference or self.norm_constraint is not None or self.delta_times != 1
            start = StartWeights(trained, keep)
            tasks = [Task(self._view(lm, chunk, start), deepcopy(self.loss)) for chunk in chunks]
            optimizer = torch.optim.Adam(trained.leaves, lr=self.lr, weight_decay=self.decay(len(edits)))
            losses = self._train(tasks, optimizer, start)
            if self.delta_times != 1:
                start.scale_delta(self.delta_times)
        return {"steps": len(losses), "loss": losses[-1] if losses else 0.0} | moved(trained)

    def _view(self, lm: LM, edits: Sequence[Edit], start: StartWeights) -> LossInputs:
        facts = [fact for edit in edits for fact in self.facts(edit)]
        batch = lm.encode([fact.prompt for fact in facts], [fact.target_new for fact in facts], self.mask)
        trained = [name for name, parameter in lm.model.named_parameters() if parameter.requires_grad]
        return LossInputs(lm, facts, batch, start, TrainingForward(lm, trained))

    def _train(self, tasks: Sequence["Task"], optimizer: torch.optim.Adam, start: StartWeights) -> list[float]:
        """The loss before each optimiser step."""
        enough = -math.inf if self.stop_loss is None else self.stop_loss
        taken: list[float] = []
        for cycle in range(self.cycles):
            for step in range(self.steps):
                losses = []
                for task in tasks:
                    loss = task.loss_at(cycle, step)
                    if loss is None:
                        continue
                    losses.append(finite(loss))
                    if loss.requires_grad and losses[-1] >= enough and not self._stuck(cycle, step, losses[-1]):
                        self._update(optimizer, loss, start, len(taken))
                        taken.append(losses[-1])
                        if self.on_step:
                            self.on_step(len(taken), taken[-1])
                if not losses or mean(losses) < enough or self._stuck(cycle, step, mean(losses)):
                    break
            if not losses:
                break
        return taken

    def _stuck(self, cycle: int, step: int, loss: float) -> bool:
        return self.stuck_loss is not None and cycle == 0 and step >= 2 and abs(loss - self.stuck_loss) < 5e-5

    def _update(self, optimizer: torch.optim.Adam, loss: Tensor, start: StartWeights, step: int) -> None:
        optimizer.zero_grad()
        (loss + self.adapter.regulariser() if self.adapter else loss).backward()
        start.trained.hand_over()
        optimizer.step()
        start.trained.write()
        start.moved = True
        if self.adapter:
            self.adapter.stepped(step)
        if self.norm_constraint is not None:
            start.clamp(self.norm_constraint)


@dataclass
class Task:
    """A batch of edits with its own copy of the loss."""

    view: LossInputs
    loss: Loss
    learnt: bool = False  # nothing was left to learn when the cycle began

    def loss_at(self, cycle: int, step: int) -> Float[Tensor, ""] | None:
        """None where nothing is left to learn in this cycle."""
        if step == 0:
            logits = self.view.logits()
            self.learnt = self.loss.refresh(self.view, logits, cycle)
        if self.learnt:
            return None
        read = self.loss.reads(self.view)
        if step or read is not self.view.batch:
            logits = self.view.logits(read)
        return self.loss(self.view, logits).mean()
