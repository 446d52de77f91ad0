"""What gradients are made of: what enters matrices, and the gradients of what they put out."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from kedit.lm.hooks import hook
from kedit.lm.text import Batch

if TYPE_CHECKING:
    from kedit.lm.model import LM

Positions = Literal["all", "answer"]  # every token that is no padding; or those where an answer's token is predicted
CaptureLoss = Callable[[Float[Tensor, "k v"], Batch], Float[Tensor, ""]]  # takes the logits that predict `batch.gold`


class Factors(NamedTuple):
    """A matrix's gradient as a sum of outer products: for W [o i], dL/dW = Σ_r outputs_r inputs_rᵀ."""

    inputs: Float[Tensor, "r i"]  # what enters the matrix
    outputs: Float[Tensor, "r o"]  # the loss's gradient with respect to what the matrix puts out

    def gradient(self) -> Float[Tensor, "o i"]:
        return self.outputs.T @ self.inputs


def mean_nll(logits: Float[Tensor, "k v"], batch: Batch) -> Float[Tensor, ""]:
    """Cross-entropy, the mean over all answer tokens of the batch."""
    return functional.cross_entropy(logits.float(), batch.gold)


def capture(
    lm: "LM", batch: Batch, modules: Sequence[str], positions: Positions = "answer", loss: CaptureLoss = mean_nll
) -> dict[str, Factors]:
    """The factors of the loss's gradient with respect to these matrices (names of modules), from one forward and one
    backward pass; float32, on each matrix's own device.

    Rows stand in reading order: of "answer" row r belongs to the batch's row `batch.row[r]`, of "all" to
    `row_owners(batch, "all")[r]`. Of "answer" the factors are those of the whole gradient only in the last layer: what
    stands before an answer has gradients too. Nothing below the first of the modules is kept for the backward pass.
    """
    passed: dict[str, tuple[Tensor, Tensor]] = {}
    with torch.enable_grad(), ExitStack() as hooks:
        for name in modules:
            keep = lm.model.get_submodule(name).register_forward_hook(_keep(name, passed), with_kwargs=True)
            hooks.enter_context(hook(keep))
        value = loss(lm.answer_logits(batch), batch)
    gradients = torch.autograd.grad(value, [passed[name][1] for name in modules])
    rows, columns = _places(batch, positions)
    return {
        name: Factors(*(part[rows.to(part.device), columns.to(part.device)].float() for part in (passed[name][0], g)))
        for name, g in zip(modules, gradients, strict=True)
    }


def row_owners(batch: Batch, positions: Positions) -> Int[Tensor, " r"]:
    """For each row of what `capture` returns, the row of the batch that it belongs to."""
    return _places(batch, positions)[0]


def _places(batch: Batch, positions: Positions) -> tuple[Tensor, Tensor]:
    if positions == "answer":
        return batch.row, batch.col
    rows, columns = batch.mask.nonzero(as_tuple=True)
    return rows, columns


def _keep(name: str, passed: dict[str, tuple[Tensor, Tensor]]) -> Any:
    def after(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        if not output.requires_grad:  # nothing below it has a gradient: the graph begins here
            output.requires_grad_(True)
        entered = args[0] if args else next(iter(kwargs.values()))
        passed[name] = (entered.detach(), output)

    return after
