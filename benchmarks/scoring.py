"""Answers and texts: kedit's pooled batches against one prompt at a time."""

import torch

from benchmarks.bench import Bench, Timing


def scoring(bench: Bench, repeats: int, rate: float) -> list[list[str]]:
    """The pass before editing, the pass after, and both for a second editor, whose answers before are kept."""
    questions = bench.material.questions
    asked = [p for p, _ in questions], [a for _, a in questions]
    pairs = bench.lm.text.pairs(*asked)
    encoded = [(torch.tensor([pair.ids], device=bench.device), pair.start) for pair in pairs]
    before, after, second = Timing(), Timing(), Timing()
    for i in range(repeats + 1):
        first, same_first = _pass(bench, asked, encoded, pristine=True)
        with torch.no_grad():
            bench.lm.track([bench.name])[0].mul_(1.5)
            bench.plain.weight.mul_(1.5)
        then, same_then = _pass(bench, asked, encoded, pristine=False)
        bench.lm.restore()
        bench.plain.weight.data.copy_(bench.lm.model.get_parameter(bench.name))
        before.same &= same_first
        after.same &= same_then
        if i:  # the first warms up
            before.add(*first)
            after.add(*then)
            second.add(then[0], first[1] + then[1])
    tokens, places = sum(len(p.ids) for p in pairs), sum(len(p.answer) for p in pairs)
    plain = bench.cost.forward(tokens, tokens)
    whole, tail = bench.cost.forward(tokens, places), bench.cost.forward(tokens, places, bench.layer)
    return [
        before.line(f"{len(questions)} answers, before", plain / whole, whole, rate),
        after.line(f"{len(questions)} answers, after", plain / tail, tail, rate),
        second.line("before and after, of a second editor", 2 * plain / tail, tail, rate),
    ]


def _pass(bench: Bench, asked: tuple, encoded: list, *, pristine: bool) -> tuple[tuple[float, float], bool]:
    """(kedit's seconds, plain's), and whether they say the same."""
    said: list = []

    def ours() -> None:
        if pristine:
            bench.lm.cache_lower_layers([])
            bench.lm.cache_lower_layers([bench.name], *asked)
        said.append([scored.pred for scored in bench.lm.answer(*asked)])

    times = bench.timed(ours), bench.timed(lambda: said.append([bench.plain.score(*one) for one in encoded]))
    return times, said[0] == said[1]


def fluency(bench: Bench, repeats: int, texts: int) -> list[str]:
    """Texts of 100 tokens, prompt included, sampled."""
    prompts = bench.material.prompts[:texts]
    ids = [torch.tensor([i], device=bench.device) for i in bench.lm.text.prompts(prompts)]
    length = min(100, bench.lm.model.config.max_position_embeddings)
    asked = {"max_tokens": length, "top_k": 5, "seeds": list(range(len(prompts))), "stop": False}
    timing = Timing()
    for _ in range(repeats):
        ours = bench.timed(lambda: bench.lm.generate(prompts, **asked))
        timing.add(ours, bench.timed(lambda: [bench.plain.generate(i, length - i.shape[1], top_k=5) for i in ids]))
    return timing.line(f"{len(prompts)} fluency texts of {length} tokens")
