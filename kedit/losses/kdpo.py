"""KDPO: the model's present answer is the rejected one, and both answers are read in the new answer's context."""

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from kedit.common.options import Positive
from kedit.losses import Loss, LossInputs, log_p


class KDPO(Loss):
    """-log sigmoid(beta · h), h = sum over k of [log pi(y_w,k) - log pi(y_l,k)] - [the same under pi_ref].

    KDPO §3.5, Alg. 1 (arXiv 2406.09920).
    The context of every token is c + y_w, so one forward pass serves chosen and rejected tokens, and one pass at the
    start of the edit serves the reference in every cycle. Where y_w,k = y_l,k the terms cancel: no gradient.
    """

    uses_reference = True

    def __init__(self, beta: Positive):
        self.beta = beta

    def refresh(self, view: LossInputs, logits: Float[Tensor, "k v"], cycle: int) -> Bool[Tensor, " n"]:
        """Pick the negatives: y_l = argmax pi(c + y_w), token by token, teacher-forced (Eq. 1). Done when y_l = y_w."""
        if cycle == 0:
            self.reference = view.reference(now=logits)
        self.rejected = logits.detach().argmax(-1)
        return view.batch.all(self.rejected == view.batch.gold)

    def keep(self, view: LossInputs, rows: Int[Tensor, " m"], places: Int[Tensor, " l"]) -> None:
        self.reference, self.rejected = self.reference[places], self.rejected[places]

    def __call__(self, view: LossInputs, logits: Float[Tensor, "k v"]) -> Float[Tensor, " n"]:
        margin = self._margin(view, logits.log_softmax(-1)) - self._margin(view, self.reference)
        return -functional.logsigmoid(self.beta * view.batch.sum(margin))

    def _margin(self, view: LossInputs, logprobs: Float[Tensor, "k v"]) -> Float[Tensor, " k"]:
        """log p(y_w,k) - log p(y_l,k)."""
        return log_p(logprobs, view.batch.gold) - log_p(logprobs, self.rejected)
