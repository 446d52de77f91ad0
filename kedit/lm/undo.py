"""The undo log: everything that edits change in a model, restored bit for bit at the cost of those tensors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kedit.common.errors import InputError
from kedit.lm.trained import LOW

Suspend = Callable[[], AbstractContextManager[None]]
ATTACHED = "+"  # before the names of attached tensors in a saved state


@dataclass(frozen=True, slots=True)
class Undo:
    """How one change is undone, what it changes, and how it is switched off for a while."""

    undo: Callable[[], None]
    names: Sequence[str]
    suspend: Suspend


class UndoLog:
    """The changes of a model: tracked parameters, tensors attached by an editor, hooks and adapters.

    `masters`: float32 copies of tracked parameters of a lower precision. `attached`: tensors that an editor keeps
    beside the parameters (side matrices, codebooks, adapter blocks), by name.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.masters: dict[str, Tensor] = {}
        self.attached: dict[str, Tensor] = {}
        self._originals: dict[str, Tensor] = {}
        self._undo: list[Undo] = []
        self._edit_start: EditStart | None = None  # inside a transaction
        self._substituted: list[str] = []
        self._suspended = False  # inside `unedited`

    # --- what edits change --------------------------------------------------------------------------------------------

    def track(self, names: Sequence[str], *, master: bool = False) -> list[nn.Parameter]:
        """Say "I will change these"; returns the parameters. The first call for a name saves its original.

        `master`: also keep a float32 copy of each that has a lower precision (`masters`), for the whole run.
        """
        parameters = [self.parameter(name) for name in names]
        for name, parameter in zip(names, parameters, strict=True):
            if parameter.device.type == "meta":
                raise InputError(
                    f"{name} is offloaded, and a change made in place would be lost; "
                    "load the model with a device_map that keeps it on a device"
                )
            if name not in self._originals:
                self._originals[name] = parameter.detach().clone()
            if self._edit_start is not None:
                self._edit_start.note(name, parameter, self.masters.get(name))
            if master and name not in self.masters and parameter.dtype in LOW:
                self.masters[name] = parameter.detach().float()
        return parameters

    @torch.no_grad()
    def add(self, changes: Mapping[str, Tensor]) -> None:
        """Add to parameters, by their names: of a lower precision to their float32 masters, so that small changes add
        up."""
        for (name, change), parameter in zip(changes.items(), self.track(list(changes), master=True), strict=True):
            master = self.masters.get(name)
            changed = parameter if master is None else master
            changed.add_(change.to(changed))
            if master is not None:
                parameter.copy_(master)

    def attach(self, name: str, value: Tensor | None) -> None:
        """Keep a tensor that edits made beside the model's parameters; None: drop it.

        It is part of the saved state, rolled back with a failed edit, checked to be finite, and gone after `restore`.
        A value is replaced, never changed in place.
        """
        if value is None:
            self.attached.pop(name, None)
        else:
            self.attached[name] = value.detach()

    def on_restore(
        self, undo: Callable[[], None], names: Sequence[str] = ("the whole model",), suspend: Suspend | None = None
    ) -> None:
        """Register any other undo (an adapter's unload, ...); `restore` runs them in reverse order.

        `names`: of the modules or parameters that behave differently until then; not given: the whole model may.
        `suspend`: a context in which the change is off (needed inside `unedited`).
        """
        self._undo.append(Undo(undo, names, suspend or _cannot_suspend(names)))

    @property
    def changed(self) -> list[str]:
        """What may differ from the unedited model: names of parameters, modules, and of what acts in its passes."""
        if self._suspended:
            return list(self._substituted)
        return [*self._originals, *self._substituted, *(name for entry in self._undo for name in entry.names)]

    # --- undoing ------------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """The unedited model again, bit for bit."""
        self._run_undos(keep=0)
        self._write(self._originals)
        self._originals.clear()
        self.masters.clear()
        self.attached = {}

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """Inside, this is the unedited model: tracked parameters and their originals trade places (nothing is copied),
        adapters and interventions are off."""
        if self._suspended:
            yield
            return
        with ExitStack() as stack:
            for entry in self._undo:
                stack.enter_context(entry.suspend())
            edited = [(self.parameter(name), original) for name, original in self._originals.items()]
            stack.enter_context(_traded(edited))
            self._suspended = True
            try:
                yield
            finally:
                self._suspended = False

    @contextmanager
    def substituted(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, parameters of these names are these tensors; gradients flow into them."""
        places = [(module, leaf, tensors[name]) for name in tensors for module, leaf in self._places(name)]
        before = [module._parameters[leaf] for module, leaf, _ in places]
        self._substituted += tensors
        for module, leaf, tensor in places:
            module._parameters[leaf] = tensor  # type: ignore[assignment]  # as torch.func.functional_call does
        try:
            yield
        finally:
            for (module, leaf, _), parameter in zip(places, before, strict=True):
                module._parameters[leaf] = parameter
            del self._substituted[len(self._substituted) - len(tensors) :]

    def _places(self, name: str) -> list[tuple[nn.Module, str]]:
        """(module, attribute) of a parameter: several where it is tied."""
        parameter = self.parameter(name)
        return [
            (module, leaf)
            for module in self.model.modules()
            for leaf, held in module._parameters.items()
            if held is parameter
        ]

    def parameter(self, name: str) -> nn.Parameter:
        """By its name in the bare model, also while peft wraps its module."""
        try:
            return self.model.get_parameter(name)
        except AttributeError:
            module, _, leaf = name.rpartition(".")
            return self.model.get_parameter(f"{module}.base_layer.{leaf}")

    # --- saving -------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Tracked parameters (their float32 masters, if they have some) and attached tensors: beside the unedited
        model, all that edits changed in it."""
        parameters = {name: self.masters.get(name, self.parameter(name).detach()) for name in self._originals}
        return parameters | {ATTACHED + name: value for name, value in self.attached.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a saved `state`, on the unedited model."""
        parameters = {name: value for name, value in state.items() if not name.startswith(ATTACHED)}
        self.track(list(parameters))
        self._write(parameters)
        self.masters |= {n: v for n, v in parameters.items() if v.dtype != self.parameter(n).dtype}
        self.attached = {name[len(ATTACHED) :]: v for name, v in state.items() if name.startswith(ATTACHED)}

    # --- one edit -----------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[dict[str, float]]:
        """One edit. Yields a dict that afterwards holds `weight_change`: ‖ΔW‖/‖W‖ over what it tracked or replaced.

        On FloatingPointError (raised inside, or here if a tensor is no longer finite) exactly this edit's changes are
        undone and the error goes on.
        """
        self._edit_start, undos = EditStart(self.attached), len(self._undo)
        report: dict[str, float] = {}
        try:
            yield report
            if (change := self._relative_change(self._edit_start)) is not None:
                report["weight_change"] = change
        except FloatingPointError:
            self._run_undos(keep=undos)
            self._roll_back(self._edit_start)
            raise
        finally:
            self._edit_start = None

    def _roll_back(self, start: "EditStart") -> None:
        self._write(start.parameters)
        for name in start.parameters:
            self.masters.pop(name, None)
        self.masters |= start.masters
        self.attached = start.attached

    def _run_undos(self, keep: int) -> None:
        while len(self._undo) > keep:
            self._undo.pop().undo()

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameter(name).copy_(value)

    @torch.no_grad()
    def _relative_change(self, start: "EditStart") -> float | None:
        """None if the edit changed no tensor that was there before."""
        pairs = [(self.parameter(name).detach(), before) for name, before in start.parameters.items()]
        replaced = {n: v for n, v in self.attached.items() if v is not start.attached.get(n) and v.is_floating_point()}
        if not all(bool(after.isfinite().all()) for after in [*(after for after, _ in pairs), *replaced.values()]):
            raise FloatingPointError("an edit left tensors that are not finite")
        known = ((v, start.attached.get(n)) for n, v in replaced.items())
        pairs += [(after, before) for after, before in known if before is not None and before.shape == after.shape]
        size = sum(float(before.norm()) ** 2 for _, before in pairs)
        if not pairs:
            return None
        change = sum(float((after - before.to(after)).norm()) ** 2 for after, before in pairs)
        return (change / size) ** 0.5 if size else 0.0


class EditStart:
    """What an edit found: copies of the parameters that it tracks, references to attached tensors."""

    def __init__(self, attached: Mapping[str, Tensor]):
        self.parameters: dict[str, Tensor] = {}
        self.masters: dict[str, Tensor] = {}
        self.attached = dict(attached)

    def note(self, name: str, parameter: Tensor, master: Tensor | None) -> None:
        """Copy it, the first time."""
        if name in self.parameters:
            return
        self.parameters[name] = parameter.detach().clone()
        if master is not None:
            self.masters[name] = master.clone()


@contextmanager
def _traded(parameters: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Inside, each parameter has the other tensor's data."""
    now = [parameter.data for parameter, _ in parameters]
    for parameter, value in parameters:
        parameter.data = value
    try:
        yield
    finally:
        for (parameter, _), data in zip(parameters, now, strict=True):
            parameter.data = data


def _cannot_suspend(names: Sequence[str]) -> Suspend:
    def suspend() -> AbstractContextManager[None]:
        raise RuntimeError(f"{', '.join(names)}: a change that cannot be switched off; register it with `suspend`")

    return suspend


def no_suspension() -> AbstractContextManager[None]:
    """For changes that are off by themselves inside `unedited`."""
    return nullcontext()
