"""Acting inside a pass: functions that change what a module puts out, and know which pass it is (DESIGN §11)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from kedit.lm.hooks import hook
from kedit.lm.route import Reading


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One forward pass, as an intervention may see it."""

    real: Bool[Tensor, "n t"]  # not padding; padded positions are never read
    prompt: Bool[Tensor, "n t"]  # tokens of the prompts; all False in the later steps of a generation
    continues: bool = False  # goes on with a KV cache: what was decided for a row still holds
    who: Sequence[Reading] = ()  # what each row carries
    memo: dict[object, Any] = field(default_factory=dict)  # lives from the first to the last pass of one generation

    def note(self, i: int, **told: Any) -> None:
        """Add fields to row i's info, and so to rows.jsonl."""
        self.who[i].info.update(told)

    def last_prompt_token(self) -> Tensor:
        """The column of each row's last prompt token, [n]; -1 in rows without one."""
        columns = torch.arange(self.prompt.shape[1], device=self.prompt.device)
        return torch.where(self.prompt, columns, -1).amax(-1)

    @staticmethod
    def over(ids: Tensor, real: Tensor | None = None) -> "Pass":
        """A pass of which nothing else is known: every real token (all, if `real` is not given) counts as prompt."""
        known = torch.ones_like(ids, dtype=torch.bool) if real is None else real.bool()
        return Pass(known, known, who=[Reading() for _ in range(len(ids))])


# (pass, what enters the module, what it puts out) -> what it puts out instead. Pure: it may run twice in a pass, or not
# at all; it writes memo and notes only.
Change = Callable[[Pass, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Intervention:
    """A change of one module's output. `lost`: what a saved model would lack, in words."""

    module: str
    change: Change
    lost: str = ""


class Interventions:
    """The active ones, by the names of their modules: they are found again when peft wraps or unwraps a module.

    They are hung into the model for the length of a pass, and only then.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.active: list[Intervention] = []
        self.off = 0  # how many contexts switch them off

    @contextmanager
    def disabled(self) -> Iterator[None]:
        self.off += 1
        try:
            yield
        finally:
            self.off -= 1

    @contextmanager
    def hung(self, this: Pass) -> Iterator[None]:
        """Inside, one forward pass of the model is changed."""
        if self.off or not self.active:
            yield
            return
        with ExitStack() as hooks:
            for one in self.active:
                module = self.model.get_submodule(one.module)
                hooks.enter_context(hook(module.register_forward_hook(_hooked(one.change, this), with_kwargs=True)))
            yield


def _hooked(change: Change, this: Pass) -> Any:
    def after(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        entered = args[0] if args else next(iter(kwargs.values()))
        if isinstance(output, tuple):
            return (change(this, entered, output[0]), *output[1:])
        return change(this, entered, output)

    return after
