"""What stands at a subject in every layer, and the matrices that it goes through."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kedit.editors.locate.subject_forward import single, suffix_batch
from kedit.editors.mlp_neurons import add_to_neurons
from kedit.editors.subject import SubjectSequence
from kedit.lm.hooks import hook
from kedit.lm.partial_forward import PartialForward

if TYPE_CHECKING:
    from kedit.lm.model import LM


def subject_activations(
    lm: "LM", rows: Sequence[SubjectSequence], wanted: Sequence[tuple[str, int, Literal["in", "out"]]]
) -> list[Float[Tensor, "n w"]]:
    """What enters or leaves a part of a layer (its role in kedit.lm.anatomy) at each row's subject, the mean over its
    occurrences that count; for each of `wanted`. No token behind the subject and no layer above is run."""
    heads = [row.head for row in rows]
    found = lm.batched(
        [len(row.ids) for row in heads], lambda now: _subject_activations(lm, [heads[i] for i in now], wanted)
    )
    return [torch.stack([row[i] for row in found]) for i in range(len(wanted))]


@torch.no_grad()
def _subject_activations(
    lm: "LM", rows: Sequence[SubjectSequence], wanted: Sequence[tuple[str, int, str]]
) -> list[list[Tensor]]:
    block = suffix_batch(lm, rows, keep=False)
    seen: dict[int, Tensor] = {}
    counts = torch.zeros(len(rows), device=lm.device).index_add(
        0, block.edit_row, torch.ones(len(block.edit_row), device=lm.device)
    )

    def note(i: int, value: Tensor) -> None:
        here = single(value[block.edit_row.to(value.device), block.at.to(value.device)])
        summed = here.new_zeros(len(rows), here.shape[-1]).index_add(0, block.edit_row.to(here.device), here)
        seen[i] = summed / counts[:, None].to(here.device)

    with ExitStack() as hooks:
        for i, (part, layer, end) in enumerate(wanted):
            module = lm.model.get_submodule(getattr(lm.anatomy, part).format(layer))
            hooks.enter_context(hook(module.register_forward_hook(_reader(i, end, note))))
        last = PartialForward(lm.model, lm.anatomy, max(layer for _, layer, _ in wanted) + 1)
        last.entering(lambda: lm.body(input_ids=block.ids, **block.kwargs))
    return [[seen[i][row] for i in range(len(wanted))] for row in range(len(rows))]


def _reader(i: int, end: str, note: Callable[[int, Tensor], None]) -> Any:
    def read(module: nn.Module, args: tuple, output: Any) -> None:
        note(i, args[0] if end == "in" else output[0] if isinstance(output, tuple) else output)

    return read


@torch.no_grad()
def add_to_matrix(lm: "LM", changes: Mapping[int, Float[Tensor, "d f"]]) -> None:
    """Add to the MLP output matrices of these layers, written as matrices that map f inputs to d outputs."""
    for layer, change in changes.items():
        add_to_neurons(lm, layer, change.T)
