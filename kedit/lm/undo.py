"""The undo log: everything that edits change in a model, restored bit for bit at the cost of those tensors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from kedit.common.errors import InputError
from kedit.lm.changes import Changes, EditStart, Suspend, Undo, cannot_suspend, traded
from kedit.lm.trained import LOW

ATTACHED = "+"  # before the names of attached tensors in a saved state


class UndoLog:
    """Everything that edits change in a model, and how it is undone."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.changes = Changes()
        self._substituted: list[str] = []
        self._suspended = False  # inside `unedited`

    @property
    def masters(self) -> dict[str, Tensor]:
        """Float32 copies of tracked parameters of a lower precision, by name."""
        return self.changes.masters

    @property
    def attached(self) -> dict[str, Tensor]:
        """Tensors that an editor keeps beside the parameters, by name."""
        return self.changes.attached

    # --- what edits change --------------------------------------------------------------------------------------------

    def track(self, names: Sequence[str], *, master: bool = False) -> list[nn.Parameter]:
        """Say "I will change these"; returns the parameters. The first call for a name saves its original.

        `master`: also keep a float32 copy of each that has a lower precision (`masters`), for the whole run.
        """
        for name in names:
            parameter = self.parameter(name)
            if parameter.device.type == "meta":
                raise InputError(
                    f"{name} is offloaded, and a change made in place would be lost; "
                    "load the model with a device_map that keeps it on a device"
                )
            if name not in self.changes.originals:
                self._keep_original(name, parameter)
                parameter = self.parameter(name)
            if self.changes.edit_start is not None:
                self.changes.edit_start.note(name, parameter, self.masters.get(name))
            if master and name not in self.masters and parameter.dtype in LOW:
                self.masters[name] = parameter.detach().float()
        return [self.parameter(name) for name in names]

    def _keep_original(self, name: str, parameter: nn.Parameter) -> None:
        self.changes.originals[name] = parameter.detach().clone()

    def _bring_back_original(self, name: str, original: Tensor) -> None:
        self._write({name: original})

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
        self,
        undo: Callable[[], None],
        names: Sequence[str] = ("the whole model",),
        suspend: Suspend | None = None,
        *,
        shared: bool = False,
    ) -> None:
        """Register any other undo (an adapter's unload, ...); `restore` runs them in reverse order.

        `names`: of the modules or parameters that behave differently until then; not given: the whole model may.
        `suspend`: a context in which the change is off (needed inside `unedited`). `shared`: by all variants of the
        model, for as long as there are any (see kedit.lm.acting).
        """
        changes = self._common_changes if shared else self.changes
        changes.undo.append(Undo(undo, names, suspend or cannot_suspend(names)))

    @property
    def _common_changes(self) -> Changes:
        return self.changes

    @property
    def changed(self) -> list[str]:
        """What may differ from the unedited model: names of parameters, modules, and of what acts in its passes."""
        if self._suspended:
            return list(self._substituted)
        return [*self.changes.names, *self._substituted]

    # --- undoing ------------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """The unedited model again, bit for bit."""
        self._run_undos(keep=0)
        for name, original in self.changes.originals.items():
            self._bring_back_original(name, original)
        self.changes = Changes()

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """Inside, this is the unedited model: tracked parameters and their originals trade places (nothing is copied),
        adapters and interventions are off."""
        if self._suspended:
            yield
            return
        with ExitStack() as stack:
            for entry in self.changes.undo:
                stack.enter_context(entry.suspend())
            edited = [(self.parameter(name), original) for name, original in self.changes.originals.items()]
            stack.enter_context(traded(edited))
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
        parameters = {name: self.masters.get(name, self.parameter(name).detach()) for name in self.changes.originals}
        return parameters | {ATTACHED + name: value for name, value in self.attached.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a saved `state`, on the unedited model."""
        parameters = {name: value for name, value in state.items() if not name.startswith(ATTACHED)}
        self.track(list(parameters))
        self._write(parameters)
        self.masters.update({n: v for n, v in parameters.items() if v.dtype != self.parameter(n).dtype})
        attached = {name[len(ATTACHED) :]: v for name, v in state.items() if name.startswith(ATTACHED)}
        self.changes.attached = attached

    # --- one edit -----------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[dict[str, float]]:
        """One edit. Yields a dict that afterwards holds `weight_change`: ‖ΔW‖/‖W‖ over what it tracked or replaced.

        On FloatingPointError (raised inside, or here if a tensor is no longer finite) exactly this edit's changes are
        undone and the error goes on.
        """
        report: dict[str, float] = {}
        self.begin_edit()
        try:
            yield report
            report |= self.end_edit()
        except FloatingPointError:
            self.undo_edit()
            raise
        finally:
            self.changes.edit_start = None

    def begin_edit(self) -> None:
        """From now on, until `end_edit` or `undo_edit`, what an edit changes is noted."""
        self.changes.edit_start = EditStart(self.attached, len(self.changes.undo))

    def end_edit(self) -> dict[str, float]:
        """The edit's `weight_change` (see `transaction`). Raises FloatingPointError if it left a tensor not finite."""
        change = self._relative_change(self._edit_start)
        self.changes.edit_start = None
        return {} if change is None else {"weight_change": change}

    def undo_edit(self) -> None:
        """The model as the edit found it."""
        start, self.changes.edit_start = self._edit_start, None
        self._run_undos(keep=start.undos)
        self._write(start.parameters)
        for name in start.parameters:
            self.masters.pop(name, None)
        self.masters.update(start.masters)
        self.changes.attached = start.attached

    @property
    def _edit_start(self) -> EditStart:
        assert self.changes.edit_start is not None, "no edit has started"
        return self.changes.edit_start

    def _run_undos(self, keep: int) -> None:
        while len(self.changes.undo) > keep:
            self.changes.undo.pop().undo()

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
