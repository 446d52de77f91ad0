"""The undo log: originals of what was touched, restored bit for bit at the cost of those tensors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kedit.common.errors import InputError


class UndoLog:
    """What changes in a model, and its undoing."""

    def __init__(self, model: nn.Module):
        self.model = model
        self._originals: dict[str, Tensor] = {}
        self._undo: list[tuple[Callable[[], None], Sequence[str]]] = []
        self._edit_start: dict[str, Tensor] | None = None  # inside a transaction

    def track(self, names: Sequence[str]) -> list[nn.Parameter]:
        """Say "I will change these"; returns the parameters. The first call for a name saves its original."""
        parameters = [self.model.get_parameter(name) for name in names]
        for name, parameter in zip(names, parameters, strict=True):
            if parameter.device.type == "meta":
                raise InputError(
                    f"{name} is offloaded, and a change made in place would be lost; "
                    "load the model with a device_map that keeps it on a device"
                )
            if name not in self._originals:
                self._originals[name] = parameter.detach().clone()
            if self._edit_start is not None and name not in self._edit_start:
                self._edit_start[name] = parameter.detach().clone()
        return parameters

    def on_restore(self, undo: Callable[[], None], names: Sequence[str] = ("",)) -> None:
        """Register any other undo (a hook's remove, an adapter's unload); `restore` runs them in reverse order.

        `names`: of the modules or parameters that behave differently until then; not given: the whole model may.
        """
        self._undo.append((undo, names))

    @property
    def changed(self) -> list[str]:
        """Names of what may differ from the pristine model."""
        return [*self._originals, *(name for _, names in self._undo for name in names)]

    def restore(self) -> None:
        """All of it undone, bit for bit."""
        self._run_undos(keep=0)
        self._write(self._originals)
        self._originals.clear()

    def state(self) -> dict[str, Tensor]:
        """Current values of the tracked parameters: beside the pristine model, all that edits changed in it."""
        return {name: self.model.get_parameter(name).detach() for name in self._originals}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a saved `state`, on the pristine model."""
        self.track(list(state))
        self._write(state)

    @contextmanager
    def transaction(self) -> Iterator[dict[str, float]]:
        """One edit. Yields a dict that afterwards holds `weight_change`, ‖ΔW‖/‖W‖ over the parameters it tracked.

        On FloatingPointError (raised inside, or here where a weight is no longer finite) exactly this edit's changes
        are undone and the error goes on.
        """
        self._edit_start, undos = {}, len(self._undo)
        report: dict[str, float] = {}
        try:
            yield report
            if self._edit_start:
                report["weight_change"] = self._relative_change(self._edit_start)
        except FloatingPointError:
            self._run_undos(keep=undos)
            self._write(self._edit_start)
            raise
        finally:
            self._edit_start = None

    def _run_undos(self, keep: int) -> None:
        while len(self._undo) > keep:
            undo, _ = self._undo.pop()
            undo()

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.model.get_parameter(name).copy_(value)

    @torch.no_grad()
    def _relative_change(self, start: Mapping[str, Tensor]) -> float:
        after = [self.model.get_parameter(name) for name in start]
        if not all(bool(p.isfinite().all()) for p in after):
            raise FloatingPointError("an edit left weights that are not finite")
        change = sum(float((p - before).norm()) ** 2 for p, before in zip(after, start.values(), strict=True))
        size = sum(float(before.norm()) ** 2 for before in start.values())
        return (change / size) ** 0.5 if size else 0.0
