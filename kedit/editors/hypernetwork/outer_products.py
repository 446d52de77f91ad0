"""Gradients and changes of matrices as sums of outer products: no matrix is formed before an edit is made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kedit.lm.capture import Positions, row_owners
from kedit.lm.intervention import Change
from kedit.lm.text import Batch

if TYPE_CHECKING:
    from kedit.lm.model import LM


@dataclass(frozen=True, slots=True, eq=False)
class OuterProducts:
    """A matrix's gradient [o i] for each of the edits: Σ_r outputs_r inputs_rᵀ over the rows r whose `edit` it is."""

    inputs: Float[Tensor, "r i"]
    outputs: Float[Tensor, "r o"]
    edit: Int[Tensor, " r"]

    def times(self, factor: float | Float[Tensor, ""]) -> "OuterProducts":
        return replace(self, outputs=factor * self.outputs)

    def matrix(self) -> Float[Tensor, "o i"]:
        """The sum over all edits."""
        return self.outputs.T @ self.inputs

    def applied(self, entered: Float[Tensor, "n t i"], edits: Int[Tensor, " n"]) -> Float[Tensor, "n t o"]:
        """What row n puts out more where the matrix has changed by edit `edits[n]`."""
        own = self.edit == edits[:, None]  # [n r]
        return (entered @ self.inputs.T * own[:, None]) @ self.outputs


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """Gradients of a batch of edits, each of its own loss: the mean over its answer's tokens of -log p."""

    batch: Batch
    factors: Mapping[str, OuterProducts]  # by module; edits by their rows in the batch
    losses: Float[Tensor, " n"]


def gradients_of(lm: "LM", batch: Batch, modules: Sequence[str], positions: Positions) -> Gradients:
    """From one forward and backward pass. Rows without a gradient (behind the last answer token that is predicted, and
    in the last layer before the answer) are left out: normalised, they would have one."""
    losses: list[Tensor] = []

    def summed(logits: Float[Tensor, "k v"], batch: Batch) -> Float[Tensor, ""]:
        losses.append(batch.mean(functional.cross_entropy(logits.float(), batch.gold, reduction="none")))
        return losses[0].sum()

    captured, edit = lm.capture(batch, modules, positions, summed), row_owners(batch, positions)
    factors = {}
    for name, (inputs, outputs) in captured.items():
        real = (inputs != 0).any(-1) & (outputs != 0).any(-1)
        factors[name] = OuterProducts(*(part[real].to(lm.device) for part in (inputs, outputs, edit.to(inputs.device))))
    return Gradients(batch, factors, losses[0].detach())


def changing(changes: Mapping[str, OuterProducts], edits: Int[Tensor, " n"]) -> dict[str, Change]:
    """For LM.only_intervening: row n of a batch is read by the model with edit `edits[n]` made; gradients flow into
    the changes."""

    def change_of(products: OuterProducts) -> Change:
        def change(_: Any, entered: Tensor, output: Tensor) -> Tensor:
            here = OuterProducts(
                *(part.to(entered.device) for part in (products.inputs, products.outputs, products.edit))
            )
            return output + here.applied(entered.float(), edits.to(entered.device)).to(output)

        return change

    return {name: change_of(products) for name, products in changes.items()}


def joined(parts: Sequence[Gradients]) -> dict[str, tuple[Float[Tensor, "r i"], Float[Tensor, "r o"]]]:
    """The rows of all, by module."""
    return {
        name: (torch.cat([p.factors[name].inputs for p in parts]), torch.cat([p.factors[name].outputs for p in parts]))
        for name in (parts[0].factors if parts else ())
    }
