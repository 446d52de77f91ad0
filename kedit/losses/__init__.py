"""What a fine-tuning edit minimises. One file a loss; `conf/editor/loss/` has a yaml for each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kedit.cases import Edit
from kedit.lm import LM
from kedit.lm.partial_forward import TrainingForward
from kedit.lm.text import Batch
from kedit.lm.trained import Start


@dataclass(frozen=True, slots=True, eq=False)
class LossInputs:
    """What a loss may look at: one batch of what is trained, through the model as it is and as the edit found it."""

    lm: LM
    facts: Sequence[Edit]  # a row of the batch each
    batch: Batch
    start: Start
    passes: TrainingForward | None = None  # a way to logits that skips what training cannot change

    def logits(self, batch: Batch | None = None) -> Float[Tensor, "k v"]:
        batch = batch or self.batch
        return self.passes.logits(batch) if self.passes else self.lm.answer_logits(batch)

    def with_answers(self, rows: Sequence[int], answers: Sequence[str]) -> Batch:
        """The prompts of these rows with other answers, as the same models read them."""
        pairs = self.lm.text.pairs([self.facts[i].prompt for i in rows], answers)
        readings = [self.batch.pairs[i].reading for i in rows]
        return self.lm.batch([replace(pair, reading=reading) for pair, reading in zip(pairs, readings, strict=True)])

    def rows_of(self, batch: Batch, rows: Int[Tensor, " m"]) -> Batch:
        """Some rows of a batch."""
        return batch.rows_of(rows)[0] if self.passes is None else self.passes.rows_of(batch, rows)[0]

    @torch.no_grad()
    def reference(self, batch: Batch | None = None, now: Float[Tensor, "k v"] | None = None) -> Float[Tensor, "k v"]:
        """Log-probabilities under the weights that the edit started from: pi_ref without a second model.

        `now`: the batch's logits under the present weights; they are the reference's until something has moved, unless
        dropout had a part in them.
        """
        if now is not None and not self.start.moved and not (self.passes and self.passes.draws):
            return now.detach().log_softmax(-1)
        with self.start.weights():
            return self.logits(batch).log_softmax(-1)


class Loss:
    """A loss over the answer tokens of a batch, row by row: rows of several edits may share the batch. What it keeps
    belongs to one batch."""

    uses_reference: bool = False  # does it ask for the weights that the edit started from?
    remembers: bool = False  # does `remember` keep anything?

    def remember(self, view: LossInputs) -> None:
        """Called with each batch of a long training before its first step: keep in `view.start.kept`, by example, what
        every epoch would compute again with the weights as they were."""

    def refresh(self, view: LossInputs, logits: Float[Tensor, "k v"], cycle: int) -> Bool[Tensor, " n"] | None:
        """Called at the start of each cycle with the logits of the weights as they are. Returns the rows in which
        nothing is left to learn; None: it cannot say."""
        return None

    def keep(self, view: LossInputs, rows: Int[Tensor, " m"], places: Int[Tensor, " l"]) -> None:
        """Other edits have ended: of what it keeps, keep that of these rows, and of these answer tokens. `view` has
        them alone."""

    def reads(self, view: LossInputs) -> Batch:
        """The batch whose logits it is computed from, after `refresh`: the view's own, or one with more rows."""
        return view.batch

    def __call__(self, view: LossInputs, logits: Float[Tensor, "k v"]) -> Float[Tensor, " n"]:
        """One value for each row of the view."""
        raise NotImplementedError

    def idle(self) -> Bool[Tensor, " n"] | None:
        """The rows of the last call from which no gradient comes; None: from all of them some does."""
        return None


def log_p(logprobs: Float[Tensor, "k v"], tokens: Tensor) -> Float[Tensor, " k"]:
    """log p of one token at each place."""
    return logprobs.gather(-1, tokens[:, None])[:, 0]
