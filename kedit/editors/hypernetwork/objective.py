"""What a hypernetwork learns from (MEND, Eqs. 4 and 5): the edited model answers the edit asked in other words, and
answers something else as it did before."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from kedit.common.options import Amount, Share
from kedit.editors.hypernetwork.networks import Sum, UpdateNetwork
from kedit.editors.hypernetwork.outer_products import Gradients, OuterProducts, changing, gradients_of
from kedit.editors.training.examples import Example, TrainingEdit
from kedit.editors.training.trainer import Objective, Sums, Training, Update, shares
from kedit.lm.capture import Positions
from kedit.lm.partial_forward import TrainingForward
from kedit.lm.text import Mask
from kedit.losses.kl_divergence import kl_from

if TYPE_CHECKING:
    from kedit.lm.model import LM


@dataclass(frozen=True, kw_only=True)
class EditLoss:
    """`edit_weight` · mean -log p(answer of the question that the edit decides) + `locality_weight` · KL(unedited ‖
    edited) at the tokens of a question that it leaves as it is: all of them, or those that predict its answer
    (`locality_at`). `own_wording`: the share of draws that ask the edit's own prompt (EasyEdit's training: 1)."""

    edit_weight: Amount = 0.1
    locality_weight: Amount = 1.0
    locality_at: Literal["all", "answer"] = "all"
    own_wording: Share = 0.0


@dataclass(kw_only=True, eq=False)
class Editing:
    """How a network edits a model: which matrices, gradients at which tokens, how rows are aggregated."""

    lm: "LM"
    modules: Sequence[str]
    positions: Positions
    network: UpdateNetwork
    aggregation: Sum

    def gradients(self, edits: Sequence[Any]) -> Gradients:
        batch = self.lm.encode([edit.prompt for edit in edits], [edit.target_new for edit in edits])
        return gradients_of(self.lm, batch, self.modules, self.positions)

    def changes(self, gradients: Gradients) -> dict[str, OuterProducts]:
        pseudo = self.network(gradients)
        return {
            name: self.aggregation(gradients.factors[name], pseudo[name], self.network.rate(name))
            for name in self.modules
        }


class HypernetworkObjective(Objective):
    """The mean of EditLoss over training edits, each made alone in the unedited model."""

    def __init__(
        self,
        editing: Editing,
        loss: EditLoss,
        training: Training,
        edits: Sequence[TrainingEdit],
        held_out: Sequence[TrainingEdit],
    ):
        self.module = editing.network
        self.editing, self.loss, self.training = editing, loss, training
        self.edits, self.held_out = edits, held_out
        self.trained_edits, self.held_out_edits = len(edits), len(held_out)

    def groups(self, lr: float) -> list[dict[str, Any]]:
        return self.editing.network.groups(lr)

    def backward(self, update: Update) -> Sums:
        """All gradients of the update are observed before the first is mapped, so that it does not matter which of
        them share a pass or a process."""
        examples = [self._drawn(self.edits[update.edits[i]], f"{update.number}/{i}") for i in update.mine]
        parts = list(shares(examples, self.training.at_once))
        gradients = [self.editing.gradients([example.edit for example in part]) for part in parts]
        self.editing.network.observe(gradients)
        total = {"loss": 0.0, "edit": 0.0, "locality": 0.0, "success": 0.0}
        for part, of_part in zip(parts, gradients, strict=True):
            values = self._values(part, of_part)
            (values["loss"].sum() / len(update.edits)).backward()
            total = {name: value + float(values[name].detach().sum()) for name, value in total.items()}
        return total

    def evaluate(self, held_out: Sequence[int]) -> Sums:
        examples = [self._drawn(self.held_out[i], f"validation/{i}") for i in held_out]
        total = {"loss": 0.0, "edit": 0.0, "locality": 0.0, "success": 0.0}
        for part in shares(examples, self.training.at_once or self.training.edits_per_update):
            values = self._values(part, self.editing.gradients([example.edit for example in part]))
            total = {name: value + float(values[name].sum()) for name, value in total.items()}
        return total

    def _drawn(self, edit: TrainingEdit, draw: str) -> Example:
        return edit.draw(random.Random(f"{self.training.seed}/{draw}"), self.loss.own_wording)

    def _values(self, examples: Sequence[Example], gradients: Gradients) -> Mapping[str, Float[Tensor, " n"]]:
        """For each edit: the loss and its two parts, and whether every token of the answer is the likeliest."""
        lm, names = self.editing.lm, [f"{name}.weight" for name in self.editing.modules]
        mask: Mask = "none" if self.loss.locality_at == "all" else "positional"
        decided = lm.encode([x.decided.prompt for x in examples], [x.decided.target_new for x in examples])
        kept_pairs = lm.text.pairs([x.kept.prompt for x in examples], [x.kept.target_new for x in examples])
        kept = lm.batch(kept_pairs, mask)
        passes = TrainingForward(lm, names)
        with torch.no_grad():
            before = passes.logits(kept).float().log_softmax(-1)
        edits = torch.arange(len(examples), device=lm.device)
        with lm.only_intervening(changing(self.editing.changes(gradients), edits)):
            answer = lm.answer_logits(decided).float()
            moved = kl_from(before, passes.logits(kept).float())
        nll = decided.mean(functional.cross_entropy(answer, decided.gold, reduction="none"))
        right: Bool[Tensor, " k"] = answer.argmax(-1) == decided.gold
        kl = kept.mean(moved)
        loss = self.loss.edit_weight * nll + self.loss.locality_weight * kl
        return {"loss": loss, "edit": nll, "locality": kl, "success": (decided.mean(right.float()) == 1).float()}
