"""How far a model's predictions have moved, with as few copies of [k v] as can be: a vocabulary has 50 000 words."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def kl_from(before: Float[Tensor, "k v"], logits: Float[Tensor, "k v"]) -> Float[Tensor, " k"]:
    """KL(before ‖ softmax(logits)) of each place, in nats; `before` are log-probabilities without a gradient.

    Two tensors of their size are kept for the backward pass, and one more is made there; written with autograd's own
    operations it is five and three.
    """
    value: Tensor = _KL.apply(before, logits)
    return value


class _KL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, before: Tensor, logits: Tensor) -> Tensor:
        after = logits.log_softmax(-1)
        share = before.exp()
        ctx.save_for_backward(share, after)
        return torch.einsum("kv,kv->k", share, before) - torch.einsum("kv,kv->k", share, after)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        share, after = ctx.saved_tensors
        return None, after.exp().sub_(share).mul_(gradient[:, None])
