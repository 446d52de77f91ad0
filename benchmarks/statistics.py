"""Second moments: kedit's whole build against the bare pass that it cannot do without."""

from collections.abc import Sequence
from itertools import cycle, islice

import torch

from benchmarks.bench import Bench, Timing
from kedit.covariance.corpora import Stream
from kedit.covariance.second_moments import second_moments

WINDOW = 512


def statistics(bench: Bench, repeats: int, rate: float, tokens: int = 8192) -> list[list[str]]:
    """The second moments of five layers (MEMIT) and of one (ROME), a quarter up the model. The ratio is the bare pass's
    share of the time, its bound F/(F+S): F multiplications below the last matrix, S of k kᵀ, all of it."""
    first = bench.lm.anatomy.n_layers // 4
    five = range(first, min(first + 5, bench.lm.anatomy.n_layers))
    return [_line(bench, list(layers), repeats, rate, tokens) for layers in (five, five[-1:])]


def _line(bench: Bench, layers: Sequence[int], repeats: int, rate: float, tokens: int) -> list[str]:
    lm, corpus = bench.lm, Stream("questions", {}, lambda: cycle(_documents(bench)))
    windows = lm.text.windows(list(islice(corpus.documents(), tokens // 400)), WINDOW)
    whole = [ids for ids in windows if len(ids) == WINDOW]
    ids = torch.tensor(list(islice(cycle(whole), tokens // WINDOW)), device=bench.device)
    timing = Timing()
    for i in range(repeats + 1):
        mine = bench.timed(lambda: second_moments(lm, layers, corpus, tokens, WINDOW))
        other = bench.timed(lambda: _bare(bench, ids, layers[-1]))
        if i:  # the first warms up
            timing.add(mine, other)
    below = tokens * ((layers[-1] + 1) * bench.cost.layer - bench.cost.matrix)
    products = tokens * sum(lm.anatomy.mlp_width(lm.model, layer) ** 2 for layer in layers)
    what = f"second moments of {len(layers)} layer{'s' * (len(layers) > 1)}, {tokens} tokens"
    return timing.line(what, below / (below + products), below + products, rate)


def _documents(bench: Bench) -> list[str]:
    """The questions, in texts of some thousand tokens."""
    asked = [f"{prompt} {answer}." for prompt, answer in bench.material.questions]
    texts = [" ".join(asked[i:] + asked[:i]) for i in range(0, len(asked), max(1, len(asked) // 8))]
    return [" ".join(islice(cycle([text]), 1 + 8000 // len(text))) for text in texts]


@torch.no_grad()
def _bare(bench: Bench, ids: torch.Tensor, last: int) -> None:
    """A model that ends with layer `last`, over full windows: nothing padded, nothing kept."""
    model, anatomy = bench.plain.model, bench.lm.anatomy
    body = model.get_submodule(anatomy.body)
    stack = anatomy.block.removesuffix(".{}")
    parent, _, name = stack.rpartition(".")
    layers = model.get_submodule(stack)
    setattr(model.get_submodule(parent), name, layers[: last + 1])
    try:
        for some in ids.split(max(1, bench.lm.token_budget // WINDOW)):
            body(input_ids=some, use_cache=False)
    finally:
        setattr(model.get_submodule(parent), name, layers)
