"""Several continuations of one prompt, as multiple-choice benchmarks ask them: the prompt is read once for all.

A first pass reads each distinct prompt and keeps its keys and values; a second one reads the continuations behind
them. Continuations of one token need no second pass. Interventions, soft prompts and adapters act as in a generation.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from kedit.lm.batching import Budget, in_batches
from kedit.lm.generate import key_value_bytes, left_padded, left_positions
from kedit.lm.intervention import Pass
from kedit.lm.mixing import Steps
from kedit.lm.text import Pair

if TYPE_CHECKING:
    from kedit.lm.model import LM

POSITIONS = 512  # whose logits are held at a time: vocabularies are large


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a model makes of a continuation: its log-probability in nats, summed over its tokens, and whether greedy
    decoding would say it."""

    logprob: float
    greedy: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, and its continuations by their places among all pairs."""

    pair: Pair  # the prompt alone
    answers: dict[int, list[int]] = field(default_factory=dict)

    @property
    def longer(self) -> dict[int, list[int]]:
        """The continuations that need a second pass."""
        return {place: answer for place, answer in self.answers.items() if len(answer) > 1}

    @property
    def tokens(self) -> int:
        """How many are read."""
        return len(self.pair.ids) + sum(len(answer) - 1 for answer in self.answers.values())

    @property
    def kept(self) -> int:
        """How many keys and values are held."""
        rows = self.longer.values()
        return max(len(self.pair.ids), sum(len(self.pair.ids) + len(answer) - 1 for answer in rows))


@torch.no_grad()
def score_continuations(
    lm: "LM", pairs: Sequence[Pair], done: Callable[[int], Any] = lambda n: None
) -> list[Continuation]:
    """Scores of each pair's answer behind its prompt; `done` is told how many pairs a batch has finished.

    A pair may be one token longer than the model reads: its last token is only predicted. Pairs that share no prompt
    are read whole, in one pass, as `LM.score` does. To interventions a text without a prompt (`Pair.whole`) is all
    prompt.
    """
    found = _texts(lm, {i: pair for i, pair in enumerate(pairs) if pair.whole}, done)
    prompts = _by_prompt({i: pair for i, pair in enumerate(pairs) if not pair.whole})
    alone = [i for prompt in prompts for i in prompt.answers if _reads_whole(lm, prompt)]
    shared = [prompt for prompt in prompts if not _reads_whole(lm, prompt)]
    for start in range(0, len(alone), POSITIONS):
        some = alone[start : start + POSITIONS]
        found |= zip(some, _whole(lm, [pairs[i] for i in some]), strict=True)
        done(len(some))

    def run(now: list[int]) -> list[bool]:
        batch = [shared[i] for i in now]
        found.update(_score_batch(lm, batch))
        done(sum(len(prompt.answers) for prompt in batch))
        return [True] * len(now)

    in_batches([_size(lm, prompt) for prompt in shared], run, Budget(lm.token_budget, "tokens"))
    return [found[i] for i in range(len(pairs))]


@torch.no_grad()
def continue_tokens(lm: "LM", prompts: Sequence[Pair], limits: Sequence[int], until: Sequence[str]) -> list[list[int]]:
    """What the model says next, greedily, to prompts that are token sequences: up to its end of text, to a row's limit
    of new tokens, or through the first of the strings `until`."""
    return lm._continue(prompts, limits, eos=lm._eos, until=until)


def _texts(lm: "LM", texts: Mapping[int, Pair], done: Callable[[int], Any]) -> dict[int, Continuation]:
    """Scores of texts without a prompt, by their places; the tokens behind `Pair.start` count."""
    places = list(texts)

    def run(now: list[int]) -> list[Continuation]:
        pairs = [texts[places[i]] for i in now]
        ids, real = _right_padded([pair.ids[:-1] for pair in pairs], lm.device)
        this = Pass(real.bool(), real.bool(), who=[pair.reading for pair in pairs])
        states = lm.body(this, input_ids=ids, attention_mask=real, use_cache=False)[0]
        found = _at_spans(lm, states, [pair.start - 1 for pair in pairs], [pair.answer for pair in pairs])
        done(len(now))
        return [Continuation(sum(logprobs), greedy) for logprobs, greedy in found]

    lengths = [len(pair.ids) for pair in texts.values()]
    return dict(zip(places, in_batches(lengths, run, Budget(lm.token_budget, "tokens")), strict=True))


def _by_prompt(pairs: Mapping[int, Pair]) -> list[Prompt]:
    prompts: dict[Hashable, Prompt] = {}
    for i, pair in pairs.items():
        key = (tuple(pair.prompt), pair.reading.key)
        prompt = prompts.setdefault(key, Prompt(Pair(pair.prompt, pair.start, pair.reading)))
        prompt.answers[i] = pair.answer
    return list(prompts.values())


def _reads_whole(lm: "LM", prompt: Prompt) -> bool:
    """Whether one pass over prompt and answer is better: nothing is shared, or models are mixed."""
    [*answers] = prompt.answers.values()
    fits = len(prompt.pair.ids) + max(map(len, answers)) <= lm.context
    return bool(prompt.pair.reading.readers) or (fits and len(answers) == 1 and len(answers[0]) > 1)


def _size(lm: "LM", prompt: Prompt) -> int:
    """Tokens that are read; more, if keys and values take more room than that budget is meant for."""
    room = lm.generation_budget.limit // key_value_bytes(lm.model.config, lm.dtype.itemsize)
    return max(prompt.tokens, prompt.kept * lm.token_budget // max(1, room))


def _whole(lm: "LM", pairs: Sequence[Pair]) -> list[Continuation]:
    return [Continuation(sum(scored.logprob), scored.pred == scored.gold) for scored in lm.score(pairs)]


def _score_batch(lm: "LM", prompts: Sequence[Prompt]) -> dict[int, Continuation]:
    """Continuations of a batch of prompts, by their places."""
    ids, mask = left_padded([prompt.pair.ids for prompt in prompts], lm.device)
    steps = Steps(lm, [prompt.pair for prompt in prompts])
    logits, cache = steps.step(ids, mask, range(len(prompts)), None, True)
    place = [i for prompt in prompts for i in prompt.answers]
    owner = [row for row, prompt in enumerate(prompts) for _ in prompt.answers]
    firsts = [answer[0] for prompt in prompts for answer in prompt.answers.values()]
    found = {i: ([logprob], says) for i, logprob, says in zip(place, *_of_tokens(logits, owner, firsts), strict=True)}
    longer = [(row, i, answer) for row, prompt in enumerate(prompts) for i, answer in prompt.longer.items()]
    if longer:
        for i, (more, too) in _score_rest(lm, steps, prompts, mask, cache, longer).items():
            first, says = found[i]
            found[i] = (first + more, says and too)
    return {i: Continuation(sum(logprobs), says) for i, (logprobs, says) in found.items()}


def _of_tokens(
    logits: Float[Tensor, "g v"], owner: Sequence[int], tokens: Sequence[int]
) -> tuple[list[float], list[bool]]:
    """Log-probability of each token after its owner's prompt, and whether it is the likeliest."""
    rows, ids = torch.tensor(owner, device=logits.device), torch.tensor(tokens, device=logits.device)
    logprobs = logits.float().log_softmax(-1)
    return logprobs[rows, ids].tolist(), (logits.argmax(-1)[rows] == ids).tolist()


def _score_rest(
    lm: "LM",
    steps: Steps,
    prompts: Sequence[Prompt],
    mask: Tensor,
    cache: Any,
    longer: Sequence[tuple[int, int, list[int]]],
) -> dict[int, tuple[list[float], bool]]:
    """The tokens behind the first one of each continuation, by its place: their log-probabilities, and whether
    greedy decoding says them all."""
    rows = [row for row, _, _ in longer]
    which = torch.tensor(rows, device=mask.device)
    ids, real = _right_padded([answer[:-1] for _, _, answer in longer], lm.device)
    whole = torch.cat([mask[which], real], dim=1)
    inputs = {"input_ids": ids, "attention_mask": whole, "position_ids": left_positions(whole)[:, -ids.shape[1] :]}
    kept, who = steps.select(cache, which), [prompts[row].pair.reading for row in rows]
    this = Pass(real.bool(), torch.zeros_like(real, dtype=torch.bool), True, who, steps.memo)
    states = lm.body(this, **inputs, past_key_values=kept, use_cache=True)[0]
    found = _at_spans(lm, states, [0] * len(longer), [answer[1:] for _, _, answer in longer])
    return {i: scored for (_, i, _), scored in zip(longer, found, strict=True)}


def _at_spans(
    lm: "LM", states: Float[Tensor, "n t d"], starts: Sequence[int], tokens: Sequence[list[int]]
) -> list[tuple[list[float], bool]]:
    """Each row's `tokens`, the first of which the state at `starts` predicts: their log-probabilities, and whether
    greedy decoding says them all."""
    at = [(row, start + k) for row, start in enumerate(starts) for k in range(len(tokens[row]))]
    row, col = torch.tensor(at, device=states.device).unbind(1)
    gold = torch.tensor([token for some in tokens for token in some], device=states.device)
    logprob, right = _at_positions(lm, states[row, col], gold)
    ends = list(accumulate(map(len, tokens)))
    spans = [slice(end - len(some), end) for end, some in zip(ends, tokens, strict=True)]
    return [(logprob[span], all(right[span])) for span in spans]


def _at_positions(lm: "LM", states: Float[Tensor, "k d"], gold: Tensor) -> tuple[list[float], list[bool]]:
    logprob: list[float] = []
    right: list[bool] = []
    for begin in range(0, len(states), POSITIONS):
        logits = lm.head(states[begin : begin + POSITIONS]).float()
        tokens = gold[begin : begin + POSITIONS].to(logits.device)
        logprob += logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0].tolist()
        right += (logits.argmax(-1) == tokens).tolist()
    return logprob, right


def _right_padded(sequences: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask."""
    longest = max(map(len, sequences))
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in sequences], device=device)
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences], device=device)
    return ids, mask
