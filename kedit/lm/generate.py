"""Batched generation with a KV cache: greedy, or top-k sampling whose samples do not depend on the batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Choose = Callable[[Float[Tensor, "n v"], Int[Tensor, " n"], int], Int[Tensor, " n"]]
Finished = Callable[[int, list[int]], bool]
StoppedBy = Literal["eos", "string", "length"]  # its end-of-text token, a stop string, its limit


def greedy(logits: Float[Tensor, "n v"], rows: Int[Tensor, " n"], step: int) -> Int[Tensor, " n"]:
    return logits.argmax(-1)


class SeededTopK:
    """Samples from the k most probable tokens, renormalised, at temperature 1; row i draws from its own generator.

    A row's j-th token depends on its seed, j and its own logits only, so neither batch size nor order changes a sample.
    """

    def __init__(self, k: int, seeds: Sequence[int], steps: int, device: torch.device):
        self.k = k
        drawn = [torch.rand(steps, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self.uniform = torch.stack(drawn).to(device)

    def __call__(self, logits: Float[Tensor, "n v"], rows: Int[Tensor, " n"], step: int) -> Int[Tensor, " n"]:
        top = logits.topk(self.k)
        below = top.values.softmax(-1).cumsum(-1) < self.uniform.to(logits.device)[rows, step, None]
        return top.indices.gather(-1, below.sum(-1, keepdim=True).clamp(max=self.k - 1))[:, 0]


@dataclass(frozen=True)
class Stop:
    """When a row ends: after `limits[i]` tokens, before one of `eos`, or when `finished(i, its tokens)` says so."""

    limits: Sequence[int]
    eos: frozenset[int] = frozenset()
    finished: Finished | None = None

    @property
    def by_length_alone(self) -> bool:
        return not self.eos and self.finished is None

    def ends(self, row: int, said: list[int], token: int) -> bool:
        """Add a token to what a row has said; whether the row ends with it."""
        if token in self.eos:
            return True
        said.append(token)
        return len(said) >= self.limits[row] or (self.finished is not None and self.finished(row, said))


def before(text: str, until: Sequence[str]) -> str:
    """The text before the first of these strings."""
    ends = [at for stop in until if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def said_one_of(until: Sequence[str], decode: Callable[[list[int]], str]) -> Finished:
    """A row ends with the token that completes one of these strings."""
    return lambda _, said: before(text := decode(said), until) != text


def stopped_by(string: bool, early: bool) -> StoppedBy:
    """What ended a text: `string`, it holds a stop string; `early`, it is shorter than its limit."""
    return "string" if string else "eos" if early else "length"


def cut_at(until: Sequence[str], texts: Sequence[str], early: Sequence[bool]) -> tuple[list[str], list[StoppedBy]]:
    """Each text before the first of the stop strings `until`, and what ended it; `early`: it is shorter than its
    limit."""
    cut = [before(text, until) for text in texts]
    return cut, [stopped_by(t != c, short) for t, c, short in zip(texts, cut, early, strict=True)]


# (ids, mask, rows, cache, first) -> logits behind the last token of each row, and the cache that continues
Step = Callable[[Int[Tensor, "n t"], Int[Tensor, "n s"], Sequence[int], Any, bool], tuple[Float[Tensor, "n v"], Any]]
Select = Callable[[Any, Int[Tensor, " m"]], Any]  # some rows of a cache


@torch.no_grad()
def continue_batch(
    step: Step, select: Select, prompts: Sequence[list[int]], choose: Choose, stop: Stop, device: torch.device
) -> list[list[int]]:
    """New tokens for each prompt, up to and without an `eos`.

    Prompts are padded on the left; the pad's id is never read. Rows leave the batch when half of them have ended. If
    length alone ends them, tokens are fetched from the device once, at the end.
    """
    new: list[list[int]] = [[] for _ in prompts]
    rows = [i for i, limit in enumerate(stop.limits) if limit > 0]
    if not rows:
        return new
    ids, mask = left_padded([prompts[i] for i in rows], device)
    alive, cache, number, later = set(rows), None, 0, []
    while alive:
        if len(alive) <= len(rows) // 2:
            keep = [j for j, row in enumerate(rows) if row in alive]
            which = torch.tensor(keep, device=device)
            cache, ids, mask, rows = select(cache, which), ids[which], mask[which], [rows[j] for j in keep]
        logits, cache = step(ids, mask, rows, cache, number == 0)
        chosen = choose(logits, torch.tensor(rows, device=logits.device), number).to(device)
        number += 1
        if stop.by_length_alone:
            later.append((rows, chosen))
            alive -= {row for row in alive if number >= stop.limits[row]}
        else:
            ended = {
                row
                for row, token in zip(rows, chosen.tolist(), strict=True)
                if row in alive and stop.ends(row, new[row], token)
            }
            alive -= ended
        ids, mask = chosen[:, None], torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
    for at, chosen in later:
        for row, token in zip(at, chosen.tolist(), strict=True):
            if len(new[row]) < stop.limits[row]:
                new[row].append(token)
    return new


def left_padded(prompts: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def key_value_bytes(config: Any, bytes_per_number: int) -> int:
    """Bytes that a KV cache needs for one token of one row, from a model's config."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers = getattr(config, "num_hidden_layers", 1)
    heads = getattr(config, "num_attention_heads", 1)
    kept_heads = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 1) // heads
    return 2 * layers * kept_heads * size * bytes_per_number


def left_positions(mask: Bool[Tensor, "n t"] | Int[Tensor, "n t"]) -> Int[Tensor, "n t"]:
    """Position ids of rows padded on the left: 0 for a row's first real token."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)
