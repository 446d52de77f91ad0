"""How WISE trains its side memory with one edit: the answer's loss, and margins between activations."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kedit.cases import Edit
from kedit.editors.finetune.base import finite
from kedit.lm import LM, Pass
from kedit.lm.matrices import activation, product
from kedit.lm.partial_forward import TrainingForward
from kedit.lm.text import Batch
from kedit.lm.trained import nothing_trained
from kedit.losses import LossInputs

if TYPE_CHECKING:
    from kedit.editors.gated.wise import WISE

Margins = Sequence[float]  # alpha, beta, gamma


@dataclass(frozen=True, slots=True)
class Trained:
    """A side memory after an edit; `distance`: how far it moves the edit's activations."""

    side: Float[Tensor, "_ _"]
    distance: float
    steps: int
    loss: float


class Scope:
    """Tokens whose activations are compared: what enters the matrix there, and what it puts out by itself."""

    def __init__(self, function: nn.Module, matrix: nn.Module, entered: Tensor, counted: Bool[Tensor, "n t"]):
        self.function, self.matrix, self.counted = function, matrix, counted.to(entered.device)
        self.entered = entered[self.counted]
        with torch.no_grad():
            self.before = function(product(matrix, matrix.weight, self.entered).float())  # type: ignore[arg-type]

    def distances(self, put_out: Float[Tensor, "k d"]) -> Float[Tensor, " n"]:
        """For each row, the mean over its tokens of ‖a(before) - a(now)‖."""
        row = self.counted.nonzero()[:, 0]
        apart = (self.before - self.function(put_out.float())).norm(dim=-1)
        return apart.new_zeros(len(self.counted)).index_add(0, row, apart) / self.counted.sum(-1)


class SideForward:
    """Passes over an edit's rows with the side memory in the place of the matrix; all below it is computed once."""

    def __init__(self, lm: LM, name: str, module: str, batch: Batch, outside: str | None, over: str):
        self.lm, self.name, self.module, self.batch = lm, name, module, batch
        self.passes = TrainingForward(lm, [name])
        self.seen: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        with self.watched(), torch.no_grad():
            self.passes.logits(batch)
        matrix, function = lm.model.get_submodule(module), activation(lm.model)
        counted = batch.in_prompt if over == "prompt" else batch.mask
        self.inside = Scope(function, matrix, self.seen[0], counted)
        self.outside = None
        if outside is not None:
            [entered] = lm.hidden([outside], module, at="all", end="in")
            every = torch.ones(1, len(entered), dtype=torch.bool)
            self.outside = Scope(function, matrix, entered[None], every)

    def watched(self):  # type: ignore[no-untyped-def]
        """Inside, what enters and leaves the matrix is kept, and nothing else acts."""
        return self.lm.only_intervening({self.module: self._watch})

    def _watch(self, this: Pass, entered: Tensor, output: Tensor) -> Tensor:
        self.seen = entered, output
        return output

    def __call__(self, side: Tensor) -> tuple[Float[Tensor, "k v"], Float[Tensor, " n"], Float[Tensor, " m"] | None]:
        """Logits at the answers; distances of the edit's rows, and of the text outside its scope."""
        with self.watched(), self.lm.substituted({self.name: side.to(self.lm.dtype)}):
            logits = self.passes.logits(self.batch)
        inside = self.inside.distances(self.seen[1][self.inside.counted])
        if self.outside is None:
            return logits, inside, None
        put_out = product(self.outside.matrix, side.to(self.lm.dtype), self.outside.entered)
        return logits, inside, self.outside.distances(put_out)


def activation_loss(
    inside: Float[Tensor, " n"], outside: Float[Tensor, " m"] | None, margins: Margins
) -> Float[Tensor, ""]:
    """The edit moves activations by beta at least, the other text by alpha at most, and by gamma less than the edit
    (WISE Eq. 6); of each condition the mean over the rows that break it, as the released code has it."""
    alpha, beta, gamma = margins
    broken = [beta - inside]
    if outside is not None:
        broken += [outside[:, None] - inside[None] + gamma, outside - alpha]
    return torch.stack([_mean_above_zero(part) for part in broken]).sum()


def _mean_above_zero(values: Tensor) -> Float[Tensor, ""]:
    above = values > 0
    return (values * above).sum() / above.sum().clamp(min=1)


def train_side(
    editor: "WISE", lm: LM, side: Tensor, mask: Bool[Tensor, "_ _"], facts: Sequence[Edit], outside: str | None
) -> Trained:
    """Steps of plain SGD on the entries of the mask, until the loss stands still near 0."""
    batch = lm.encode([fact.prompt for fact in facts], [fact.target_new for fact in facts])
    view, loss = LossInputs(lm, facts, batch, nothing_trained()), deepcopy(editor.loss)
    module = editor.module(lm)
    forward = SideForward(lm, f"{module}.weight", module, batch, outside, editor.distance_over)
    original = lm.parameter(f"{module}.weight").detach().to(side)
    side, values = side.clone().requires_grad_(True), [float("inf"), float("inf")]
    share, margins = answer_share(batch, editor.loss_denominator), [editor.margins_times * m for m in editor.margins]
    for step in range(editor.steps):
        logits, inside, out = forward(side)
        if step == 0:
            loss.refresh(view, logits.detach(), 0)
        total = (loss(view, logits.float()) * share.to(logits.device)).mean().to(inside.device)
        total = total + activation_loss(inside, out, margins)
        if abs(values[-1] - values[-2]) <= editor.still and values[-1] <= editor.stop_loss:
            break
        values.append(finite(total))
        side.grad = None
        total.backward()
        _descend(editor, side, original, mask)
    return Trained(side.detach(), float(inside.detach().mean()), len(values) - 2, values[-1])


def answer_share(batch: Batch, denominator: str) -> Float[Tensor, " n"]:
    """What a mean over an answer's T tokens is multiplied with: T / (T + 1) if one more counts, as in the released
    code."""
    length = torch.tensor([len(pair.answer) for pair in batch.pairs], dtype=torch.float32)
    return length / (length + 1) if denominator == "tokens_and_one" else torch.ones_like(length)


@torch.no_grad()
def _descend(editor: "WISE", side: Tensor, original: Tensor, mask: Tensor) -> None:
    """One step on the masked entries; within ± `norm_constraint` of the original."""
    gradient: Tensor = side.grad  # type: ignore[assignment]
    if editor.decay_masked:
        gradient.mul_(mask).add_(side, alpha=editor.weight_decay)
    else:
        gradient.add_(side, alpha=editor.weight_decay).mul_(mask)
    side.sub_(gradient, alpha=editor.lr)
    if editor.norm_constraint is not None:
        torch.clamp(side, original - editor.norm_constraint, original + editor.norm_constraint, out=side)
