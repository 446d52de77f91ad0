"""One loop for what is learnt from training edits while the model stays as it is: hypernetworks, prompt generators."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, inf, isfinite
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from annotated_types import Gt, Lt
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import set_seed

from kedit.common.options import Amount, Count, Positive, Seed
from kedit.common.progress import progress
from kedit.editors.training.checkpoint import Checkpoint

log = logging.getLogger(__name__)

BEST = "best.safetensors"
Item = TypeVar("Item")
Sums = dict[str, float]  # over edits, by name; "loss" is among them
Point = dict[str, float | int]  # a point of the validation curve: means, after so many "edits"
Listener = Callable[[Mapping[str, float | int]], None]  # takes the last point, the lowest loss and the seconds left


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long is learnt, and what is kept. Everything is counted in edits.

    Adam with `lr` takes a step after `edits_per_update` edits, at most `edits` in all; with `decay` the learning rates
    fall linearly, to 0 after `edits`. After every `validate_every` the
    loss on held-out training cases is taken: a share `validation` of them, at most `validation_edits` edits. What had
    the lowest is kept; after `patience` edits without a lower one (null: never) the training ends. Gradients longer
    than `max_grad_norm` (null: none) are shortened to it; an update whose gradient is not finite is skipped and
    counted.

    `at_once` edits share a pass (null: all of an update); a killed training continues at its last checkpoint, one every
    `checkpoint_s` seconds: neither changes what is learnt, but for the last digits.
    """

    lr: Amount
    edits: Count
    edits_per_update: Count
    validate_every: Count
    validation: Annotated[float, Gt(0), Lt(1)] = 0.1
    validation_edits: Count = 500
    patience: Count | None = None
    decay: bool = False
    max_grad_norm: Positive | None = None
    at_once: Count | None = None
    checkpoint_s: Amount = 600.0
    seed: Seed = 0

    @property
    def updates(self) -> int:
        return ceil(self.edits / self.edits_per_update)


@dataclass(frozen=True, slots=True)
class Update:
    """The training edits of one update, by their places, and which of them this process computes."""

    number: int
    edits: Sequence[int]
    mine: Sequence[int]  # places in `edits`


class Objective:
    """What is minimised. `module` holds all that is learnt: parameters, and running statistics as buffers."""

    module: nn.Module
    trained_edits: int  # how many there are to learn from
    held_out_edits: int  # how many there are to validate on

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameters and their learning rates, as torch's optimisers take them."""
        return [{"params": list(self.module.parameters()), "lr": lr}]

    def backward(self, update: Update) -> Sums:
        """Add to the parameters' gradients the share that `update.mine` has in those of the mean loss of all edits of
        the update; returns sums over `mine`."""
        raise NotImplementedError

    def evaluate(self, held_out: Sequence[int]) -> Sums:
        """Sums over these held-out edits, whose questions are always the same ones."""
        raise NotImplementedError


class Trainer:
    """One training: its order of edits, optimiser, checkpoints, validation curve. It runs on as many processes as
    accelerate has launched, which share the edits of each update. The first of them tells `listen` each validation."""

    def __init__(
        self,
        objective: Objective,
        training: Training,
        scratch: Path,
        of: str,
        *,
        cpu: bool,
        listen: Listener | None = None,
    ):
        self.objective, self.training, self.scratch, self.listen = objective, training, scratch, listen
        self.processes = PartialState(cpu=cpu)
        self.optimizer = torch.optim.Adam(objective.groups(training.lr))
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        buffers = dict(objective.module.named_buffers())
        self.checkpoint = Checkpoint(
            scratch, of, self.parameters, self.optimizer, training.checkpoint_s, buffers=buffers
        )
        self.curve: list[Point] = []
        self.losses: list[float] = []  # one for each update since the last validation
        self.skipped = 0

    def run(self, name: str) -> dict[str, Any]:
        """Leaves the module as it was at its lowest validation loss. Returns the validation curve, and when it was."""
        before = self.checkpoint.load()
        self.curve, self.losses = before.get("curve", []), before.get("losses", [])
        self.skipped, done = before.get("skipped", 0), before.get("step", 0)
        size = self.training.edits_per_update
        quiet = not self.processes.is_main_process
        started = (done, time.perf_counter())
        bar = progress(total=self.training.updates * size, initial=done * size, unit="edit", desc=name, disable=quiet)
        with bar:
            while done < self.training.updates and not self._is_over(done * size):
                self._update(done)
                done += 1
                if self._is_due(done):
                    self._validate(done * size)
                    bar.set_postfix(loss=f"{self.curve[-1]['loss']:.4g}", lowest=f"{self._best()['loss']:.4g}")
                    self._tell(done, started)
                bar.update(size)
                if self.processes.is_main_process:
                    self.checkpoint.save(
                        {"step": done, "curve": self.curve, "losses": self.losses, "skipped": self.skipped}
                    )
        self.objective.module.load_state_dict(load_file(self.scratch / BEST))
        return {"edits": done * size, "skipped": self.skipped, "kept": self._best(), "curve": self.curve}

    # --- one update ---------------------------------------------------------------------------------------------------

    def _update(self, number: int) -> None:
        edits = self._edits(number)
        mine = range(self.processes.process_index, len(edits), self.processes.num_processes)
        set_seed(self.training.seed + number)  # dropout: a continued training draws the same
        self.optimizer.zero_grad()
        sums = self._summed(self.objective.backward(Update(number, edits, mine)))
        for parameter in self.parameters:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = reduce(grad, "sum") if self.processes.num_processes > 1 else grad
        if not torch.isfinite(nn.utils.clip_grad_norm_(self.parameters, self.training.max_grad_norm or inf)):
            self.skipped += 1
            return
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * (1 - number / self.training.updates if self.training.decay else 1)
        self.optimizer.step()
        self.losses.append(sums["loss"] / len(edits))

    def _edits(self, number: int) -> list[int]:
        """The edits of one update; each pass over the training edits has another order."""
        size, n = self.training.edits_per_update, self.objective.trained_edits
        places = range(number * size, (number + 1) * size)
        return [shuffled(n, self.training.seed + place // n)[place % n] for place in places]

    # --- validation ---------------------------------------------------------------------------------------------------

    def _is_due(self, done: int) -> bool:
        size, every = self.training.edits_per_update, self.training.validate_every
        return done == self.training.updates or done * size // every > (done - 1) * size // every

    def _is_over(self, edits: int) -> bool:
        patience = self.training.patience
        return patience is not None and bool(self.curve) and edits - self._best()["edits"] >= patience

    def _validate(self, edits: int) -> None:
        held_out = range(min(self.training.validation_edits, self.objective.held_out_edits))
        mine = held_out[self.processes.process_index :: self.processes.num_processes]
        with torch.no_grad():
            sums = self._summed(self.objective.evaluate(mine))
        point: Point = {"edits": edits} | {name: value / len(held_out) for name, value in sums.items()}
        point |= {"train_loss": mean(self.losses)} if self.losses else {}
        self.losses = []
        if not isfinite(point["loss"]) and not self.curve:
            raise FloatingPointError(f"the validation loss after {edits} edits is {point['loss']}")
        self.curve.append(point)
        if self._best() is point and self.processes.is_main_process:
            self._keep()
        self.processes.wait_for_everyone()
        log.info("%d edits: %s", edits, ", ".join(f"{k} {v:.4g}" for k, v in point.items() if k != "edits"))

    def _tell(self, done: int, started: tuple[int, float]) -> None:
        """The last point. Seconds are left at the pace of this process: `started` is after how many updates, and when,
        it began."""
        if self.listen is None or not self.processes.is_main_process:
            return
        pace = (time.perf_counter() - started[1]) / (done - started[0])
        told = self.curve[-1] | {"lowest_loss": self._best()["loss"], "of_edits": self.training.edits}
        told |= {"seconds_left": round(pace * (self.training.updates - done), 1)}
        self.listen({f"training_{name}": value for name, value in told.items()})

    def _best(self) -> Point:
        """The first of the lowest."""
        return min((point for point in self.curve if isfinite(point["loss"])), key=lambda point: point["loss"])

    def _keep(self) -> None:
        self.scratch.mkdir(parents=True, exist_ok=True)
        new = self.scratch / f".{BEST}"
        save_file({name: value.contiguous() for name, value in self.objective.module.state_dict().items()}, new)
        os.replace(new, self.scratch / BEST)

    def _summed(self, sums: Mapping[str, float]) -> Sums:
        """Over all processes."""
        if self.processes.num_processes == 1:
            return dict(sums)
        values = torch.tensor(list(sums.values()), dtype=torch.float64, device=self.processes.device)
        summed: Tensor = reduce(values, "sum")
        return dict(zip(sums, summed.tolist(), strict=True))


@lru_cache(maxsize=4)
def shuffled(n: int, seed: int) -> list[int]:
    """0 to n - 1 in an order that the seed determines."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()


def shares(examples: Sequence[Item], at_once: int | None) -> Iterator[Sequence[Item]]:
    """The parts of an update that share a pass."""
    size = at_once or max(1, len(examples))
    for begin in range(0, len(examples), size):
        yield examples[begin : begin + size]
