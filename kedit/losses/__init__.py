"""What a fine-tuning edit minimises. One file a loss; `conf/editor/loss/` has a yaml for each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kedit.cases import Edit
from kedit.lm import LM
from kedit.lm.partial_forward import TrainingForward
from kedit.lm.text import Batch
from kedit.lm.trained import StartWeights


@dataclass(frozen=True, slots=True, eq=False)
class LossInputs:
    """What a loss may look at: one batch of what is trained, through the model as it is and as the edit found it."""

    lm: LM
    facts: Sequence[Edit]  # a row of the batch each
    batch: Batch
    start: StartWeights
    passes: TrainingForward | None = None  # a way to logits that skips what training cannot change

    def logits(self, batch: Batch | None = None) -> Float[Tensor, "k v"]:
        batch = batch or self.batch
        return self.passes.logits(batch) if self.passes else self.lm.answer_logits(batch)

    @torch.no_grad()
    def reference(self, batch: Batch | None = None, now: Float[Tensor, "k v"] | None = None) -> Float[Tensor, "k v"]:
        """Log-probabilities under the weights that the edit started from: pi_ref without a second model.

        `now`: the batch's logits under the present weights; they are the reference's until something has moved.
        """
        if now is not None and not self.start.moved:
            return now.detach().log_softmax(-1)
        with self.start.weights():
            return self.logits(batch).log_softmax(-1)


class Loss:
    """A loss over the answer tokens of a batch. What it keeps belongs to one edit and one batch."""

    uses_reference: bool = False  # does it ask for the weights that the edit started from?
    remembers: bool = False  # does `remember` keep anything?

    def remember(self, view: LossInputs) -> None:
        """Called with each batch of a long training before its first step: keep in `view.start.kept`, by example, what
        every epoch would compute again with the weights as they were."""

    def refresh(self, view: LossInputs, logits: Float[Tensor, "k v"], cycle: int) -> bool:
        """Called at the start of each cycle with the logits of the weights as they are. True: nothing is left to
        learn."""
        return False

    def reads(self, view: LossInputs) -> Batch:
        """The batch whose logits it is computed from, after `refresh`: the view's own, or one with more rows."""
        return view.batch

    def __call__(self, view: LossInputs, logits: Float[Tensor, "k v"]) -> Float[Tensor, " n"]:
        """One value for each row of the view; without a gradient where nothing is left to learn for now."""
        raise NotImplementedError


def log_p(logprobs: Float[Tensor, "k v"], tokens: Tensor) -> Float[Tensor, " k"]:
    """log p of one token at each place."""
    return logprobs.gather(-1, tokens[:, None])[:, 0]
