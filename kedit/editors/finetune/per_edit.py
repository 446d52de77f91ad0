"""Fine-tuning one edit at a time: FT-L, FT-M, LoRA, DPO, KDPO and every "+ OVERTONE" are yamls over this loop."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

from kedit.cases import Edit
from kedit.common.errors import InputError
from kedit.common.options import Amount, Count, Positive
from kedit.editors import Job, Outcome
from kedit.editors.finetune.base import Tuner, moved
from kedit.editors.finetune.joint_training import JointTraining, Part
from kedit.lm import LM
from kedit.lm.dropout import Draws
from kedit.lm.trained import StartWeights


@dataclass(kw_only=True, eq=False)
class FineTune(Tuner):
    """Adam, fresh for each edit, `cycles` x `steps` passes over the edit (with its examples one batch); several edits
    that do not depend on each other are trained side by side (kedit.editors.finetune.joint_training).

    Edits given together are passed over in batches of `batch_size`. A batch whose loss is below `stop_loss` takes no
    step; a pass whose mean loss is below it ends its cycle. `stuck_loss`: the first cycle ends where from its third
    step on the loss is still this, to four decimals. `norm_constraint` keeps each weight within ± that of its value at
    the start of the edit. `delta_times` adds the edit's change that many times.
    """

    reports_steps: ClassVar[bool] = True
    draws_by_edit: ClassVar[bool] = True

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

    @property
    def side_by_side(self) -> bool:  # type: ignore[override]
        return self.adapter.side_by_side if self.adapter else super().side_by_side

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        [outcome] = self.edit_side_by_side(lm, [Job(self, edits)])
        if isinstance(outcome, FloatingPointError):
            raise outcome
        return outcome

    def edit_side_by_side(self, lm: LM, jobs: Sequence[Job]) -> list[Outcome]:
        parts: list[Part | None] = []
        try:
            for job in jobs:
                with lm.scope(job.variant):
                    job.seed()
                    parts.append(job.editor._part(lm, job) if job.edits else None)
            if training := [part for part in parts if part is not None]:
                with ExitStack() as stack:
                    for part in training:
                        stack.enter_context(part.trained.receiving())
                    JointTraining(lm, training).run()
        except BaseException:
            for job in jobs:
                with lm.scope(job.variant):
                    job.editor._abandon(lm)
            raise
        return [self._outcome(lm, part) if part is not None else {} for part in parts]

    def _part(self, lm: LM, job: Job) -> Part:
        """What the job trains, ready to be trained."""
        facts = [self.facts(edit) for edit in job.edits]
        chunks = [facts[i : i + self.batch_size] for i in range(0, len(facts), self.batch_size)]
        batches = [[fact for one in chunk for fact in one] for chunk in chunks]
        trained = self._trained(lm)
        keep = self.loss.uses_reference or self.norm_constraint is not None or self.delta_times != 1
        draws = Draws.seeded() if self.adapter and self.adapter.dropout else None
        return Part(self, batches, len(job.edits), trained, StartWeights(trained, keep), job.variant, draws)

    @staticmethod
    def _outcome(lm: LM, part: Part) -> Outcome:
        editor = part.editor
        with lm.scope(part.variant):
            if part.failure is not None:
                editor._abandon(lm)
                return part.failure
            if editor.delta_times != 1:
                part.start.scale_delta(editor.delta_times)
            try:
                editor._close(lm)
            except FloatingPointError as failure:
                editor._abandon(lm)
                return failure
            report = {"steps": len(part.taken), "loss": part.taken[-1] if part.taken else 0.0}
            return report | moved(part.trained)
