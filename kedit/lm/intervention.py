"""Acting inside a pass: functions that change what a module puts out, and know which pass it is (DESIGN §11)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from kedit.lm.hooks import hook
from kedit.lm.route import Reading

VARIANT = "variant"  # in a memo: (VARIANT, b) holds the memo of variant b


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One forward pass, as an intervention may see it."""

    real: Bool[Tensor, "n t"]  # not padding; padded positions are never read
    prompt: Bool[Tensor, "n t"]  # tokens of the prompts; all False in the later steps of a generation
    continues: bool = False  # goes on with a KV cache: what was decided for a row still holds
    who: Sequence[Reading] = ()  # what each row carries
    memo: dict[object, Any] = field(default_factory=dict)  # lives from the first to the last pass of one generation

    def of_variant(self, variant: int, rows: slice) -> "Pass":
        """The part of it that one variant's rows are, with a memo of its own."""
        memo = self.memo.setdefault((VARIANT, variant), {})
        return Pass(self.real[rows], self.prompt[rows], self.continues, self.who[rows], memo)

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
        self.off = 0  # how many contexts switch them off

    @contextmanager
    def disabled(self) -> Iterator[None]:
        self.off += 1
        try:
            yield
        finally:
            self.off -= 1

    @contextmanager
    def hung(self, parts: Sequence[tuple[Pass, slice, Sequence[Intervention]]]) -> Iterator[None]:
        """Inside, one forward pass of the model is changed: the rows of each part by its interventions."""
        by_module: dict[str, list[tuple[Pass, slice, Change]]] = {}
        for this, rows, active in parts if not self.off else ():
            for one in active:
                by_module.setdefault(one.module, []).append((this, rows, one.change))
        with ExitStack() as hooks:
            for name, changes in by_module.items():
                module = self.model.get_submodule(name)
                hooks.enter_context(hook(module.register_forward_hook(partial(_changed, changes), with_kwargs=True)))
            yield


def _changed(
    changes: Sequence[tuple[Pass, slice, Change]],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> Any:
    """What the module puts out, after the changes of each part of the batch."""
    entered = args[0] if args else next(iter(kwargs.values()))
    out = output[0] if isinstance(output, tuple) else output
    for this, rows, change in changes:
        if rows.stop - rows.start == len(out):
            out = change(this, entered, out)
        else:
            changed = change(this, entered[rows], out[rows])
            out = torch.cat([out[: rows.start], changed.to(out.dtype), out[rows.stop :]])
    return (out, *output[1:]) if isinstance(output, tuple) else out


def keep_rows(memo: dict[Any, Any], rows: Sequence[int], variants: Sequence[int]) -> None:
    """Keep these rows' entries of everything in a memo that has one entry a row (tensors, lists).

    `variants`: of each row that was there: the memo of a variant has entries for its own rows only.
    """
    for key, value in memo.items():
        if isinstance(key, tuple) and key[0] == VARIANT:
            mine = [i for i, variant in enumerate(variants) if variant == key[1]]
            keep_rows(value, [mine.index(row) for row in rows if row in mine], [0] * len(mine))
        elif isinstance(value, Tensor) and value.ndim:
            memo[key] = value[torch.tensor(list(rows), dtype=torch.long, device=value.device)]
        elif isinstance(value, list):
            memo[key] = [value[row] for row in rows]
