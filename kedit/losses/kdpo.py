"""KDPO: the model's present answer is the rejected one, and both answers are read in the new answer's context."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kedit.lm.text import Batch
from kedit.losses import Loss


class KDPO(Loss):
    """-log sigmoid(beta · h), h = sum over k of [log pi(y_w,k) - log pi(y_l,k)] - [the same under pi_ref].

    KDPO §3.5, Alg. 1 (arXiv 2406.09920).
    The context of every token is c + y_w, so one forward pass serves chosen and rejected tokens, and one pass at the
    start of the edit serves the reference in every cycle. Where y_w,k = y_l,k the terms cancel: no gradient.
    """

    def __init__(self, beta: float):
        self.beta = beta

    def refresh(self, batch: Batch, logits: Float[Tensor, "k v"], cycle: int) -> bool:
        """Pick the negatives: y_l = argmax pi(c + y_w), token by token, teacher-forced (Eq. 1). Done when y_l = y_w."""
        if cycle == 0:
            self.reference = logits.detach().log_softmax(-1)  # pi_ref: the weights at the start of the edit
        self.rejected = logits.detach().argmax(-1)
        return bool((self.rejected == batch.gold).all())

    def __call__(self, batch: Batch, logits: Float[Tensor, "k v"]) -> Float[Tensor, " n"]:
        margin = self._margin(batch, logits.log_softmax(-1)) - self._margin(batch, self.reference)
        return -functional.logsigmoid(self.beta * batch.sum(margin))

    def _margin(self, batch: Batch, logprobs: Float[Tensor, "k v"]) -> Float[Tensor, " k"]:
        """log p(y_w,k) - log p(y_l,k)."""

        def of(tokens: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
            return logprobs.gather(-1, tokens[:, None])[:, 0]

        return of(batch.gold) - of(self.rejected)
