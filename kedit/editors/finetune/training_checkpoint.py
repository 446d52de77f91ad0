"""A long training's own checkpoint: what is trained, the optimiser's moments, and how far it has come."""

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kedit.cases import Edit

log = logging.getLogger(__name__)


class Checkpoint:
    """One safetensors file in `folder` (null: none is kept), replaced whole every `every_s` seconds."""

    def __init__(
        self,
        folder: Path | None,
        edits: Sequence[Edit],
        parameters: Sequence[nn.Parameter],
        optimizer: Optimizer,
        schedule: LRScheduler,
        every_s: float,
    ):
        self.path = folder / "training.safetensors" if folder else None
        self.of = sha256(repr(list(edits)).encode()).hexdigest()
        self.parameters, self.optimizer, self.schedule, self.every_s = parameters, optimizer, schedule, every_s
        self._last = time.monotonic()

    @torch.no_grad()
    def load(self) -> tuple[int, list[float]]:
        """Bring everything to where the checkpoint of the same edits was made; returns its step (0 without one) and
        the losses that were saved with it."""
        if self.path is None or not self.path.is_file():
            return 0, []
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata()
                held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError):
            return 0, []  # killed while it was made for the first time
        if about.get("of") != self.of:
            return 0, []
        for i, parameter in enumerate(self.parameters):
            parameter.copy_(held[f"{i}"])
        moments = {i: {key: held[f"{i}.{key}"] for key in MOMENTS} for i in range(len(self.parameters))}
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        updates = int(moments[0]["step"])
        self.schedule.load_state_dict(self.schedule.state_dict() | {"last_epoch": updates - 1, "_step_count": updates})
        self.schedule.step()
        log.info("the training continues after its step %s", about["step"])
        return int(about["step"]), json.loads(about["losses"])

    def save(self, step: int, losses: Sequence[float]) -> None:
        """When it is time."""
        if self.path is None or time.monotonic() - self._last < self.every_s or not self.optimizer.state:
            return
        new = self.path.with_suffix(".new")
        new.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(self._tensors()), new, metadata={"step": str(step), "of": self.of, "losses": json.dumps(losses)})
        os.replace(new, self.path)
        self._last = time.monotonic()

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for i, parameter in enumerate(self.parameters):
            yield f"{i}", parameter.detach().contiguous()
            for key in MOMENTS:
                yield f"{i}.{key}", self.optimizer.state[parameter][key].contiguous()


MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of Adam
