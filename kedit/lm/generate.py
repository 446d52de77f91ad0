"""Batched generation with a KV cache: greedy, or top-k sampling whose samples do not depend on the batch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Head = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n v"]]
Choose = Callable[[Float[Tensor, "n v"], int], Int[Tensor, " n"]]


def greedy(logits: Float[Tensor, "n v"], step: int) -> Int[Tensor, " n"]:
    return logits.argmax(-1)


class SeededTopK:
    """Samples from the k most probable tokens, renormalised, at temperature 1; row i draws from its own generator.

    A row's j-th token depends on its seed, j and its own logits only, so neither batch size nor order changes a sample.
    """

    def __init__(self, k: int, seeds: Sequence[int], steps: int):
        self.k = k
        self.uniform = torch.stack([torch.rand(steps, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def __call__(self, logits: Float[Tensor, "n v"], step: int) -> Int[Tensor, " n"]:
        top = logits.topk(self.k)
        below = top.values.softmax(-1).cumsum(-1) < self.uniform[:, step, None].to(logits.device)
        return top.indices.gather(-1, below.sum(-1, keepdim=True).clamp(max=self.k - 1))[:, 0]


@torch.no_grad()
def continue_batch(
    body: Callable[..., Any],
    head: Head,
    prompts: Sequence[list[int]],
    limits: Sequence[int],
    choose: Choose,
    eos: frozenset[int],
    device: torch.device,
) -> list[list[int]]:
    """New tokens for each prompt: at most its own limit, up to and without an `eos` (empty: only length stops).

    Prompts are padded on the left; the pad's id is never read.
    """
    longest = max(len(ids) for ids in prompts)
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    new: list[list[int]] = [[] for _ in prompts]
    alive = {i for i, limit in enumerate(limits) if limit > 0}
    cache, step = None, 0
    while alive:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = body(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        chosen = choose(head(out.last_hidden_state[:, -1]).float(), step)
        for i, token in enumerate(chosen.tolist()):
            if i in alive and token not in eos:
                new[i].append(token)
            if token in eos or len(new[i]) >= limits[i]:
                alive.discard(i)
        ids, step = chosen[:, None].to(device), step + 1
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    return new
