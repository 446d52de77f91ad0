"""A long training's own checkpoint: what is trained, the optimiser's moments, and how far it has come."""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

log = logging.getLogger(__name__)

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # Adam's, of each parameter
FILE = "training.safetensors"


class Checkpoint:
    """One safetensors file in `folder` (null: none is kept), replaced whole every `every_s` seconds.

    `of` says which training it belongs to: one of another is ignored. `buffers` are tensors that are trained without an
    optimiser, by name (running statistics).
    """

    def __init__(
        self,
        folder: Path | None,
        of: str,
        parameters: Sequence[nn.Parameter],
        optimizer: Optimizer,
        every_s: float,
        schedule: LRScheduler | None = None,
        buffers: Mapping[str, Tensor] | None = None,
    ):
        self.path = folder / FILE if folder else None
        self.of, self.every_s = of, every_s
        self.parameters, self.optimizer, self.schedule = parameters, optimizer, schedule
        self.buffers = buffers or {}
        self._last = time.monotonic()

    @torch.no_grad()
    def load(self) -> dict[str, Any]:
        """Bring everything to where the checkpoint was made; returns the progress that was saved with it ({} without
        one)."""
        about, held = self._read()
        if about.get("of") != self.of:
            return {}
        for i, parameter in enumerate(self.parameters):
            parameter.copy_(held[f"{i}"])
        for name, buffer in self.buffers.items():
            buffer.copy_(held[f"buffer.{name}"])
        moments = {i: {key: held[f"{i}.{key}"] for key in MOMENTS} for i in range(len(self.parameters))}
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        if self.schedule is not None:
            updates = int(moments[0]["step"])
            state = self.schedule.state_dict() | {"last_epoch": updates - 1, "_step_count": updates}
            self.schedule.load_state_dict(state)
            self.schedule.step()
        progress: dict[str, Any] = json.loads(about["progress"])
        log.info("the training continues after its step %s", progress["step"])
        return progress

    def _read(self) -> tuple[dict[str, str], dict[str, Tensor]]:
        """The file's metadata and tensors; nothing where there is none, or one that was cut off."""
        if self.path is None or not self.path.is_file():
            return {}, {}
        try:
            with safe_open(self.path, "pt") as file:
                return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return {}, {}

    def save(self, progress: Mapping[str, Any]) -> None:
        """When it is time. `progress` is JSON-able and has the "step"."""
        if self.path is None or time.monotonic() - self._last < self.every_s or not self.optimizer.state:
            return
        new = self.path.with_suffix(".new")
        new.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(self._tensors()), new, metadata={"of": self.of, "progress": json.dumps(progress)})
        os.replace(new, self.path)
        self._last = time.monotonic()

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for i, parameter in enumerate(self.parameters):
            yield f"{i}", parameter.detach().contiguous()
            for key in MOMENTS:
                yield f"{i}.{key}", self.optimizer.state[parameter][key].contiguous()
        for name, buffer in self.buffers.items():
            yield f"buffer.{name}", buffer.contiguous()
