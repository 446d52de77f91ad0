"""What edits have changed in a model: the record that an undo log works on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

from torch import Tensor, nn

from kedit.lm.intervention import Intervention
from kedit.lm.route import Router, unrouted

Suspend = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Undo:
    """How one change is undone, what it changes, and how it is switched off for a while."""

    undo: Callable[[], None]
    names: Sequence[str]
    suspend: Suspend


class EditStart:
    """What an edit found: copies of the parameters that it tracks, references to attached tensors."""

    def __init__(self, attached: Mapping[str, Tensor], undos: int):
        self.undos = undos  # changes of other kinds that were there
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


@dataclass
class Changes:
    """What edits have changed in one model, or in one variant of it (kedit.lm.variants).

    `masters`: float32 copies of tracked parameters of a lower precision. `attached`: tensors that an editor keeps
    beside the parameters (side matrices, codebooks, adapter blocks), by name.
    """

    originals: dict[str, Tensor] = field(default_factory=dict)
    masters: dict[str, Tensor] = field(default_factory=dict)
    attached: dict[str, Tensor] = field(default_factory=dict)
    undo: list[Undo] = field(default_factory=list)
    interventions: list[Intervention] = field(default_factory=list)
    route: Router = unrouted
    edit_start: EditStart | None = None  # while an edit is made

    @property
    def names(self) -> list[str]:
        """Names of parameters and modules that may behave differently."""
        acting = [one.module for one in self.interventions]
        return [*self.originals, *(name for entry in self.undo for name in entry.names), *acting]


@contextmanager
def traded(parameters: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Inside, each parameter has the other tensor's data."""
    now = [parameter.data for parameter, _ in parameters]
    for parameter, value in parameters:
        parameter.data = value
    try:
        yield
    finally:
        for (parameter, _), data in zip(parameters, now, strict=True):
            parameter.data = data


def cannot_suspend(names: Sequence[str]) -> Suspend:
    def suspend() -> AbstractContextManager[None]:
        raise RuntimeError(f"{', '.join(names)}: a change that cannot be switched off; register it with `suspend`")

    return suspend


def no_suspension() -> AbstractContextManager[None]:
    """For changes that are off by themselves inside `unedited`."""
    return nullcontext()
