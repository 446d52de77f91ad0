"""OVERTONE: token-level smoothing, so that an edit stops pushing a token that is already learnt."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from kedit.common.options import Amount, Positive, Share
from kedit.losses import Loss, LossInputs


class Overtone(Loss):
    """max(KL(target || pi), epsilon) at each answer token; the target mixes the answer with what the model would say.

    OVERTONE Eq. 2-4 and Alg. 1: target = lam · onehot(y) + (1 - lam) · pi_flt, where pi_flt is the model's own
    distribution over the tokens whose logit is above max - n · std; where y is not its argmax, target = onehot(y). No
    gradient flows through the target, nor from a token whose KL is below epsilon. Its Table 3's ablations: `clip` off
    (epsilon = 0), `dyn` off (pi_flt of the model as the edit found it), `chk` off (always the mixture), `flt` off
    (pi_flt over all tokens). lam = 1 and epsilon = 0 is cross-entropy. Eq. 2 sums over tokens; `reduction` mean (the
    default of the yaml) keeps the meaning of an editor's learning rate and stop rule. An edit with every token within
    epsilon is idle: it takes no step, so that Adam's moments do not go on moving what Alg. 1 leaves in place.
    """

    def __init__(
        self,
        lam: Share,
        epsilon: Amount,
        n: Positive,
        *,
        clip: bool = True,
        dyn: bool = True,
        chk: bool = True,
        flt: bool = True,
        reduction: Literal["mean", "sum"] = "mean",
    ):
        self.lam, self.epsilon, self.n = lam, epsilon if clip else 0.0, n if flt else math.inf
        self.dyn, self.chk, self.reduction = dyn, chk, reduction
        self.uses_reference = not dyn

    def refresh(self, view: LossInputs, logits: Float[Tensor, "k v"], cycle: int) -> None:
        if not self.dyn and cycle == 0:
            # log-probabilities have the same softmax, distance from the maximum, and standard deviation
            self.found = view.reference(now=logits)

    def keep(self, view: LossInputs, rows: Int[Tensor, " m"], places: Int[Tensor, " l"]) -> None:
        if not self.dyn:
            self.found = self.found[places]

    def idle(self) -> Bool[Tensor, " n"]:
        return self.within

    def __call__(self, view: LossInputs, logits: Float[Tensor, "k v"]) -> Float[Tensor, " n"]:
        target = self.target(logits.detach() if self.dyn else self.found, view.batch.gold)
        kl = functional.kl_div(logits.log_softmax(-1), target, reduction="none").sum(-1)
        values = kl.clamp(min=self.epsilon) if self.epsilon else kl  # rounding may leave a KL just below 0
        self.within = view.batch.all(kl.detach() < self.epsilon)
        return view.batch.mean(values) if self.reduction == "mean" else view.batch.sum(values)

    def target(self, logits: Float[Tensor, "k v"], gold: Tensor) -> Float[Tensor, "k v"]:
        answer = functional.one_hot(gold, logits.shape[-1]).to(logits.dtype)
        top = logits.max(-1, keepdim=True).values
        kept = logits.masked_fill(logits <= top - self.n * logits.std(-1, keepdim=True), -torch.inf)
        mixed = self.lam * answer + (1 - self.lam) * kept.softmax(-1)
        if not self.chk:
            return mixed
        agrees = mixed.gather(-1, gold[:, None]) >= mixed.max(-1, keepdim=True).values  # a tie is y's
        return torch.where(agrees, mixed, answer)
