"""Standard fine-tuning (Gangadhar and Stratos 2024): epochs over edits and their examples, one edit or ten thousand."""

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from math import ceil
from statistics import mean
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import get_scheduler, set_seed

from kedit.cases import Case, Edit
from kedit.common.errors import InputError
from kedit.common.options import Amount, Count, Positive, Share
from kedit.common.progress import progress
from kedit.editors.extra_examples import Texts
from kedit.editors.finetune.base import Tuner, finite, moved
from kedit.editors.finetune.composed import Composed, closed
from kedit.editors.training.checkpoint import Checkpoint
from kedit.lm import LM
from kedit.lm.modes import eval_mode
from kedit.lm.trained import StartWeights, Trained
from kedit.losses import LossInputs

log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class StandardFineTune(Tuner):
    """`epochs` over all edits and examples in shuffled batches of `batch_size` examples (for each process), by AdamW.

    Batches are composed and tokenised when their turn comes. It runs on as many processes as accelerate has launched.
    An epoch whose mean loss is below `stop_loss` is the last, a mean over batches or (`mean_over`) over examples; a
    batch whose loss is below `skip_loss` makes no step; `max_steps` ends after so many batches. `append_eos`: the
    end-of-text token is trained behind each answer, so that the model learns to stop. The rate rises
    over the first `warmup_ratio` of the updates; gradients longer than `max_grad_norm` (null: none) are shortened to
    it. `global_batch` examples make one update, however many processes there are: batches are accumulated (instead of
    `gradient_accumulation`). `dropout` switches the model's own on while it trains. A killed training continues at its
    last checkpoint, one every `checkpoint_s` seconds.
    """

    epochs: Count
    max_steps: Count | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_ratio: Share = 0.0
    max_grad_norm: Positive | None = None
    texts: Texts | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_accumulation: Count = 1
    global_batch: Count | None = None
    dropout: bool = False
    gradient_checkpointing: bool = False
    checkpoint_s: Amount = 600.0
    append_eos: bool = False
    skip_loss: Amount | None = None
    mean_over: Literal["batches", "examples"] = "batches"

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.epochs, self.batch_size, self.gradient_accumulation) < 1:
            given = f"editor.epochs={self.epochs}, batch_size={self.batch_size}"
            raise InputError(f"{given}, gradient_accumulation={self.gradient_accumulation}: each must be at least 1")
        if self.warmup_ratio and self.schedule == "constant":
            given = f"editor.warmup_ratio={self.warmup_ratio} with schedule=constant"
            raise InputError(f"{given}: a constant rate has no warm-up; set schedule=cosine, or warmup_ratio=0")
        accumulates = self.global_batch is not None or self.gradient_accumulation > 1
        if self.skip_loss is not None and (accumulates or self.schedule != "constant"):
            given = f"editor.skip_loss={self.skip_loss}, schedule={self.schedule}, global_batch={self.global_batch}"
            raise InputError(
                f"{given}, gradient_accumulation={self.gradient_accumulation}: a batch that is skipped has no place in "
                "a schedule or among accumulated ones; set skip_loss=null, or schedule=constant and no accumulation"
            )

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        super().fit(lm, train)
        if self.texts:
            self.texts.fit()

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        if not edits:
            return {}
        with self.tuned(lm) as trained, self._training(lm):
            return TrainingRun(self, lm, Composed(self, edits), trained).run() | moved(trained)

    @contextmanager
    def _training(self, lm: LM) -> Iterator[None]:
        """The model as it trains: with its dropout, and with activations that are computed again."""
        if self.dropout:
            lm.model.train()
        try:
            with checkpointing(lm) if self.gradient_checkpointing else nullcontext():
                yield
        finally:
            lm.model.eval()

    def accumulation(self, processes: int) -> int:
        """Batches of one update. Raises InputError if `global_batch` is no multiple of what the processes read."""
        if self.global_batch is None:
            return self.gradient_accumulation
        together = self.batch_size * processes
        if self.global_batch % together:
            raise InputError(
                f"editor.global_batch={self.global_batch} is no multiple of {together}, the examples that {processes} "
                f"processes read at a time (editor.batch_size={self.batch_size} each); change one of them"
            )
        return self.global_batch // together


class Objective(nn.Module):
    """The loss of one batch of facts: a module, so that accelerate can spread it over processes."""

    def __init__(self, tuner: StandardFineTune, lm: LM, start: StartWeights, per_edit: int):
        super().__init__()
        self.model = lm.model  # whose gradients the processes share
        self.tuner, self.lm, self.start, self.per_edit = tuner, lm, start, per_edit

    def forward(self, facts: Sequence[Edit]) -> Float[Tensor, ""]:
        view, loss = self.inputs(facts), deepcopy(self.tuner.loss)
        batch, logits = view.batch, view.logits()
        learnt = loss.refresh(view, logits, cycle=0)
        read = loss.reads(view)
        total = loss(view, logits if read is batch else view.logits(read)).mean()
        if (learnt is not None and bool(learnt.all())) or not total.requires_grad:
            total = total.detach() + 0 * logits.sum()  # every process takes part in the backward pass
        if self.tuner.texts:
            total = self.tuner.texts.added(total, self.lm, len(facts) / self.per_edit)
        more = self.tuner.adapter.regulariser() if self.tuner.adapter else None
        return total if more is None else total + more

    def inputs(self, facts: Sequence[Edit]) -> LossInputs:
        facts = closed(self.lm, facts) if self.tuner.append_eos else facts
        batch = self.lm.encode([f.prompt for f in facts], [f.target_new for f in facts], self.tuner.mask)
        return LossInputs(self.lm, facts, batch, self.start)


class TrainingRun:
    """One training: optimiser, schedule, order of batches, checkpoints."""

    def __init__(self, tuner: StandardFineTune, lm: LM, data: Composed, trained: Trained):
        self.tuner, self.data, self.trained = tuner, data, trained
        self.seed = torch.initial_seed() % 2**31
        self.start = StartWeights(trained, keep=tuner.loss.uses_reference)
        AcceleratorState._reset_state()  # the editor of an earlier cell may have had another precision
        self.accelerator = Accelerator(cpu=lm.device.type == "cpu", mixed_precision=tuner.mixed_precision)
        self.batches = ceil(ceil(len(data) / tuner.batch_size) / self.accelerator.num_processes)  # an epoch, a process
        self.steps = min(self.batches * tuner.epochs, tuner.max_steps or sys.maxsize)
        optimizer = torch.optim.AdamW(trained.leaves, lr=tuner.lr, weight_decay=tuner.decay(len(data.edits)))
        self.accumulation = tuner.accumulation(self.accelerator.num_processes)
        if tuner.global_batch and self.accelerator.is_main_process:
            log.info("an update: %d examples, of %d batches in turn", tuner.global_batch, self.accumulation)
        updates = ceil(self.steps / self.accumulation)
        warmup = ceil(updates * tuner.warmup_ratio)
        self.schedule = get_scheduler(tuner.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=updates)
        of = sha256(repr(list(data.edits)).encode()).hexdigest()
        self.checkpoint = Checkpoint(
            tuner.scratch, of, trained.leaves, optimizer, tuner.checkpoint_s, schedule=self.schedule
        )
        self.objective = Objective(tuner, lm, self.start, data.per_edit)
        self.model = self.accelerator.prepare_model(self.objective, device_placement=False)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer, device_placement=False)

    def run(self) -> dict[str, float | int]:
        """Steps taken, the last epoch's mean loss, examples a second."""
        if self.tuner.loss.remembers:
            self._remember()
        before = self.checkpoint.load()
        done, losses = before.get("step", 0), before.get("losses", [])  # losses: of the epoch so far
        self.trained.write()
        self.start.moved = done > 0
        size = self.tuner.batch_size * self.accelerator.num_processes
        began, number = time.perf_counter(), done - 1
        quiet = len(self.data) < 1000 or not self.accelerator.is_main_process
        with progress(total=self.steps * size, initial=done * size, unit="ex", disable=quiet) as bar:
            for number, facts in enumerate(islice(self.order(), done, self.steps), done):
                if number % self.batches == 0:
                    losses = []
                losses.append(self.step(number, facts))
                bar.update(size)
                if len(losses) == self.batches and self._learnt(losses):
                    break
                if (number + 1) % self.accumulation == 0 and self.accelerator.is_main_process:
                    self.checkpoint.save({"step": number + 1, "losses": losses})
        rate = round((number + 1 - done) * size / (time.perf_counter() - began), 2)
        return {"steps": number + 1, "loss": self._mean(losses), "examples_per_s": rate}

    @torch.no_grad()
    def _remember(self) -> None:
        """What the loss wants of the weights as they are now, once for each example that will be trained; in the order
        of the data, whatever a killed training had done, and each process a part of it."""
        here, of = self.accelerator.process_index, self.accelerator.num_processes
        used = self._shuffled(0)[: self.steps * of * self.tuner.batch_size].sort().values
        with eval_mode(self.objective.model), self.accelerator.autocast():
            for part in used.split(self.tuner.batch_size)[here::of]:
                facts = [self.data[i] for i in part.tolist()]
                deepcopy(self.tuner.loss).remember(self.objective.inputs(facts))
        for kept in gather_object([self.start.kept]) if of > 1 else ():
            self.start.kept |= kept

    def order(self) -> Iterator[list[Edit]]:
        """This process's batches of all epochs, each epoch in its own order."""
        here, of = self.accelerator.process_index, self.accelerator.num_processes
        for epoch in range(self.tuner.epochs):
            batches = self._shuffled(epoch).split(self.tuner.batch_size)
            for i in range(self.batches):
                yield [self.data[j] for j in batches[(i * of + here) % len(batches)].tolist()]

    def _shuffled(self, epoch: int) -> Int[Tensor, " n"]:
        return torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.seed + epoch))

    def step(self, number: int, facts: Sequence[Edit]) -> float:
        set_seed(self.seed + number)  # dropout and texts: a continued training draws the same
        accumulate = self.accumulation
        update = (number + 1) % accumulate == 0 or number + 1 == self.steps
        with nullcontext() if update else self.accelerator.no_sync(self.model):
            loss = self.model(facts)
            value = finite(loss)
            if self._skipped(value):
                return value
            self.accelerator.backward(loss / accumulate)
        if update:
            self.trained.hand_over()
            if self.tuner.max_grad_norm is not None:
                self.accelerator.clip_grad_norm_(self.trained.leaves, self.tuner.max_grad_norm)
            self.optimizer.step()
            self.trained.write()
            self.schedule.step()
            self.start.moved = True
            if self.tuner.adapter:
                self.tuner.adapter.stepped(number // accumulate)
            self.optimizer.zero_grad()
        return value

    def _skipped(self, value: float) -> bool:
        """Is this batch's loss, over all processes, so low that no step is made?"""
        return self.tuner.skip_loss is not None and self._over_processes(value) < self.tuner.skip_loss

    def _learnt(self, losses: list[float]) -> bool:
        """Is the epoch's mean loss, over all processes, below the stop?"""
        if self.tuner.stop_loss is None:
            return False
        return self._over_processes(self._mean(losses)) < self.tuner.stop_loss

    def _mean(self, losses: list[float]) -> float:
        """The mean loss of an epoch; over examples, the last batch, which may be a short one, weighs less."""
        if self.tuner.mean_over == "batches":
            return mean(losses)
        size, rest = self.tuner.batch_size, len(self.data) % self.tuner.batch_size
        sizes = [size] * len(losses)
        alone = self.accelerator.num_processes == 1  # several: each has other batches
        sizes[-1] = rest if rest and alone and len(losses) == self.batches else size
        return sum(n * loss for n, loss in zip(sizes, losses, strict=True)) / sum(sizes)

    def _over_processes(self, value: float) -> float:
        here = torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
        return float(self.accelerator.reduce(here, "mean"))


@contextmanager
def checkpointing(lm: LM) -> Iterator[None]:
    """Activations of a layer are computed again in the backward pass instead of being kept."""
    lm.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    layers = [lm.model.get_submodule(lm.anatomy.block.format(i)) for i in range(lm.anatomy.n_layers)]
    for layer in layers:
        layer.training = True  # transformers checkpoints in training only; what is inside keeps its dropout off
    try:
        yield
    finally:
        lm.model.gradient_checkpointing_disable()  # type: ignore[operator]
        if hasattr(lm.model, "_require_grads_hook"):  # enabling may hook the embeddings, disabling leaves that
            lm.model.disable_input_require_grads()  # type: ignore[operator]
        for layer in layers:
            layer.training = False
