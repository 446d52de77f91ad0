"""DPO as KDPO's paper runs it: what the model would say now is the rejected answer, in its own context."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from kedit.cases import Edit
from kedit.common.options import Positive, Share
from kedit.lm.text import Batch
from kedit.losses import Loss, LossInputs, log_p


class DPO(Loss):
    """-log sigmoid(beta · ([log pi(y_w|c) - log pi(y_l|c)] - [the same under pi_ref])), y_l of as many tokens as y_w.

    KDPO §3.2 and Figure 2 (arXiv 2406.09920): y_l is continued freely from c at the start of each cycle, so its tokens
    are read in the context c + y_l, and nothing cancels where it shares a token with y_w.
    """

    uses_reference = True

    def __init__(self, beta: Positive):
        self.beta = beta

    def refresh(self, view: LossInputs, logits: Float[Tensor, "k v"], cycle: int) -> Bool[Tensor, " n"]:
        """Generate the negatives greedily. Done when they are the answers."""
        self.rejected = view.lm.greedy_continuation(view.batch)
        self.both = view.lm.interleaved(view.batch, self.rejected)
        self.reference = log_likelihood(self.both, view.reference(self.both))
        return view.batch.all(self.rejected.gold == view.batch.gold)

    def keep(self, view: LossInputs, rows: Int[Tensor, " m"], places: Int[Tensor, " l"]) -> None:
        self.both = view.rows_of(self.both, torch.stack([2 * rows, 2 * rows + 1], dim=1).flatten())
        self.reference = self.reference.view(-1, 2)[rows].flatten()

    def reads(self, view: LossInputs) -> Batch:
        """Chosen and rejected answers in one pass, in turn."""
        return self.both

    def __call__(self, view: LossInputs, logits: Float[Tensor, "k v"]) -> Float[Tensor, " n"]:
        chosen, rejected = (log_likelihood(self.both, logits.log_softmax(-1)) - self.reference).view(-1, 2).unbind(1)
        return -functional.logsigmoid(self.beta * (chosen - rejected))


class PreferNewAnswer(Loss):
    """alpha · (another loss) + (1 - alpha) · DPO of the new answer over the dataset's old one.

    Standard fine-tuning §5.1, "+ DPO" (the paper states no alpha). Rows without an old answer count with the other
    loss alone.
    """

    uses_reference = True
    remembers = True

    def __init__(self, other: Loss, alpha: Share, beta: Positive):
        self.other, self.alpha, self.beta = other, alpha, beta

    def remember(self, view: LossInputs) -> None:
        self._encode(view)
        if self.rows:
            view.start.kept |= zip(self._facts(view), self._reference(view).tolist(), strict=True)
        self.other.remember(view)

    def refresh(self, view: LossInputs, logits: Float[Tensor, "k v"], cycle: int) -> Bool[Tensor, " n"] | None:
        if cycle == 0:
            self._encode(view)
        if cycle == 0 and self.rows:
            kept = [view.start.kept.get(fact) for fact in self._facts(view)]
            self.reference = self._reference(view) if None in kept else logits.new_tensor(kept)
        return self.other.refresh(view, logits, cycle)

    def _encode(self, view: LossInputs) -> None:
        facts = view.facts
        self.rows = [i for i, fact in enumerate(facts) if fact.target_old and fact.target_old != fact.target_new]
        if self.rows:
            self.new = view.with_answers(self.rows, [facts[i].target_new for i in self.rows])
            self.old = view.with_answers(self.rows, [str(facts[i].target_old) for i in self.rows])

    def _facts(self, view: LossInputs) -> list[Edit]:
        """Those with an old answer."""
        return [view.facts[i] for i in self.rows]

    def _reference(self, view: LossInputs) -> Float[Tensor, " m"]:
        """The margins of the weights that the edit started from."""
        return self._margin(view.reference(self.new), view.reference(self.old))

    def keep(self, view: LossInputs, rows: Int[Tensor, " m"], places: Int[Tensor, " l"]) -> None:
        self.other.keep(view, rows, places)
        kept, before = rows.tolist(), self.rows
        self.rows = [i for i, row in enumerate(kept) if row in before]
        if self.rows:
            own = rows.new_tensor([before.index(row) for row in kept if row in before])
            self.new, self.old = view.rows_of(self.new, own), view.rows_of(self.old, own)
            self.reference = self.reference[own]

    def __call__(self, view: LossInputs, logits: Float[Tensor, "k v"]) -> Float[Tensor, " n"]:
        values = self.other(view, logits)
        if not self.rows:
            return values
        now = self._margin(view.logits(self.new).log_softmax(-1), view.logits(self.old).log_softmax(-1))
        term = -functional.logsigmoid(self.beta * (now - self.reference))
        share = values.new_ones(len(values))
        share[self.rows] = self.alpha
        return (share * values).index_add(0, values.new_tensor(self.rows).long(), (1 - self.alpha) * term)

    def _margin(self, new: Float[Tensor, "k v"], old: Float[Tensor, "l v"]) -> Float[Tensor, " m"]:
        return log_likelihood(self.new, new) - log_likelihood(self.old, old)


def log_likelihood(batch: Batch, logprobs: Float[Tensor, "k v"]) -> Float[Tensor, " n"]:
    """log p of each row's answer."""
    return batch.sum(log_p(logprobs, batch.gold))
