"""The KL divergence of trained editors equals its definition, and so does its gradient."""

import torch
from torch.nn import functional

from kedit.losses.kl_divergence import kl_from


def test_value_and_gradient_are_those_of_the_definition() -> None:
    torch.manual_seed(0)
    before, weights = torch.randn(5, 11).log_softmax(-1), torch.randn(5)
    found = []
    logits = torch.randn(5, 11, dtype=torch.float32)
    for ours in (True, False):
        leaf = logits.clone().requires_grad_()
        after = leaf.log_softmax(-1)
        value = (
            kl_from(before, leaf)
            if ours
            else functional.kl_div(after, before, reduction="none", log_target=True).sum(-1)
        )
        (value * weights).sum().backward()
        found.append((value.detach(), leaf.grad))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_what_has_not_moved_is_at_zero() -> None:
    logits = torch.randn(3, 7, dtype=torch.float64)
    assert kl_from(logits.log_softmax(-1), logits + 2.0).abs().max() < 1e-12
