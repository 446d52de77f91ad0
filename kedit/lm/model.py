"""LM: the model that is edited, scored and continued; the only place that meets devices, padding and memory."""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.common.errors import InputError
from kedit.lm.batching import Budget, in_batches
from kedit.lm.capture import capture
from kedit.lm.changes import no_suspension
from kedit.lm.forward import with_prefix
from kedit.lm.generate import SeededTopK, Stop, StoppedBy, continue_batch, cut_at, greedy, key_value_bytes, said_one_of
from kedit.lm.mixing import MixedScores, Steps
from kedit.lm.route import Route, unrouted
from kedit.lm.routing import Routing
from kedit.lm.saving import no_adapter, save_merged
from kedit.lm.shared_prefix import Shared, chunks, read_behind, shared_beginnings
from kedit.lm.shared_prefix import answer_states as behind_states
from kedit.lm.shared_prefix import tokens as shared_tokens
from kedit.lm.text import Batch, Pair

log = logging.getLogger(__name__)
POOL = 4096  # pairs that are tokenised and sorted by length together
POSITIONS = 512  # whose logits are held at a time: vocabularies are large


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model says at the answer positions of one prompt, teacher-forced; one entry for each answer token."""

    gold: list[int]  # the answer's ids
    pred: list[int]  # argmax ids
    logprob: list[float]  # log-probability of gold
    gold_text: str
    pred_text: str
    info: Mapping[str, Any] = field(default_factory=dict)  # the prompt's route, and what interventions noted


@dataclass(frozen=True, slots=True)
class Generated:
    """What a model wrote: the continuation, and the whole text it belongs to."""

    text: str
    full: str  # prompt + continuation, special tokens removed
    info: Mapping[str, Any] = field(default_factory=dict)
    tokens: Sequence[int] = ()  # new ones, through the one that completes a stop string; without an end-of-text token
    stopped_by: StoppedBy = "length"


class LM(Routing):
    """A causal language model with its tokenizer.

    `identity` says which model it is (file hashes, or a hub commit); its answers are cached under it, and not at all if
    it is None. `token_budget` (tokens of a scoring batch; null: by device; halved when memory runs out), `padding_side`
    and `keep_mb` (memory for the cached lower layers) change no score. In-context and memory editors set `route`; it is
    called once for each batch of prompts before they are scored or continued, and `restore` unsets it.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, identity: str | None = None, **options: Any
    ):
        super().__init__(model, tokenizer, **options)
        self.identity = identity
        self.save_adapter: Callable[[Path], None] = no_adapter  # the editor's whose adapter is in the model
        self.lent: dict[str, LM] = {}
        self.generation_budget = Budget(_cache_bytes(self.device), "bytes of keys and values", most_rows=1024)
        self._eos = self.text.eos | _ids(getattr(model.generation_config, "eos_token_id", None))

    def lend(self, name: str, other: "LM") -> None:
        """Let routes name another model of the same vocabulary as a reader, until `restore`."""
        if other.text.tokenizer.get_vocab() != self.text.tokenizer.get_vocab():
            raise InputError(
                f"the model {name} has another vocabulary; answers of two models mix only over one vocabulary"
            )
        if self.lent.get(name) is not other:
            self.lent[name] = other
            self.on_restore(partial(self.lent.__delitem__, name), [], no_suspension, shared=True)

    @torch.no_grad()
    def cache_lower_layers(
        self, names: Sequence[str], prompts: Sequence[str] = (), answers: Sequence[str] = ()
    ) -> None:
        """Say which parameters edits will change (none: nobody knows) and what will be asked: scoring it, before and
        after edits, then begins at the first of their layers. Only on the unedited model."""
        distinct = list(dict.fromkeys(zip(prompts, answers, strict=True))) if names else []
        if names:
            self.check_unedited("caching the layers below the edited ones")
        self.keep_lower_layers(names, self.text.pairs([p for p, _ in distinct], [a for _, a in distinct]))

    # --- teacher-forced answers ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def answer(self, prompts: Sequence[str] | Sequence[Route], answers: Sequence[str]) -> list[Scored]:
        """Argmax ids and gold log-probabilities of every answer, from one pass.

        Pooled: equal questions that are read alike are scored once, batches are formed by length within the token
        budget; no score depends on it.
        """
        routes = self._routes(prompts)
        keys = [(route.key, answer) for route, answer in zip(routes, answers, strict=True)]
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        scored: dict[Hashable, Scored] = {}
        distinct = sorted(first.values())
        for some in (distinct[i : i + POOL] for i in range(0, len(distinct), POOL)):
            pairs = self._pairs([routes[i] for i in some], [answers[i] for i in some])
            scored |= zip([keys[i] for i in some], self.score(pairs), strict=True)
        return [_with_info(scored[key], route) for key, route in zip(keys, routes, strict=True)]

    @torch.no_grad()
    def score(self, pairs: Sequence[Pair]) -> list[Scored]:
        """The same of token sequences: argmax and log-probability of every token of `pair.answer`. A beginning that
        several share is read once."""
        groups = chunks(shared_beginnings(self, pairs), pairs, self.token_budget)
        scored: dict[int, Scored] = {}
        together = self.batched(
            [shared_tokens(group, pairs) for group in groups],
            lambda now: self._score_shared(pairs, [groups[i] for i in now]),
            [pairs[group.rows[0]].reading.variant for group in groups],
        )
        for group, found in zip(groups, together, strict=True):
            scored |= zip(group.rows, found, strict=True)
        rest = [i for i in range(len(pairs)) if i not in scored]
        each = self.batched(
            [len(pairs[i].ids) for i in rest],
            lambda now: self._score_batch([pairs[rest[i]] for i in now]),
            [pairs[i].reading.variant for i in rest],
        )
        scored |= zip(rest, each, strict=True)
        return [scored[i] for i in range(len(pairs))]

    @torch.no_grad()
    def score_greedy_continuation(
        self, prompts: Sequence[str] | Sequence[Route], answers: Sequence[str]
    ) -> list[Scored]:
        """Like `answer`, for what the model itself says next: greedily, as many tokens as each answer has."""
        routes = self._routes(prompts)
        said = self.greedy_continuation(self.batch(self._pairs(routes, answers)))
        return [_with_info(one, route) for one, route in zip(self.score(said.pairs), routes, strict=True)]

    def _pairs(self, routes: Sequence[Route], answers: Sequence[str]) -> list[Pair]:
        pairs = self.text.pairs([route.prompt for route in routes], answers)
        return [with_prefix(pair, route.reading) for pair, route in zip(pairs, routes, strict=True)]

    def _score_batch(self, pairs: Sequence[Pair]) -> list[Scored]:
        batch = self.batch(pairs)
        with self.using_cache(batch):
            answer_states = self.answer_states(batch)
        mixed = MixedScores(self, batch)
        return self._scored(pairs, *self._said(answer_states, batch.gold, mixed.log_probabilities))

    def _score_shared(self, pairs: Sequence[Pair], groups: Sequence[Shared]) -> list[list[Scored]]:
        """The cache of each group of rows that begin alike."""
        rows = [pairs[row] for group in groups for row in group.rows]
        self.check_length(max(len(pair.ids) for pair in rows))
        states = behind_states(rows, groups, read_behind(self, pairs, groups, {}, "right"))
        gold = torch.tensor([token for pair in rows for token in pair.answer], device=states.device)
        scored = iter(self._scored(rows, *self._said(states, gold, lambda logits, _: logits.log_softmax(-1))))
        return [[next(scored) for _ in group.rows] for group in groups]

    def _said(
        self, states: Tensor, gold: Tensor, log_probabilities: Callable[[Tensor, int], Tensor]
    ) -> tuple[list[int], list[float]]:
        """At each place: the argmax, and the log-probability of `gold`."""
        pred: list[Tensor] = []
        logprob: list[Tensor] = []
        for begin in range(0, len(states), POSITIONS):
            logits = self.head(states[begin : begin + POSITIONS]).float()
            logprobs = log_probabilities(logits, begin)
            pred.append(logprobs.argmax(-1))
            logprob.append(logprobs.gather(-1, gold[begin : begin + POSITIONS, None].to(logprobs.device))[:, 0])
        return torch.cat(pred).tolist(), torch.cat(logprob).tolist()

    def _scored(self, pairs: Sequence[Pair], pred: list[int], logprob: list[float]) -> list[Scored]:
        results, at = [], 0
        for pair in pairs:
            end = at + len(pair.answer)
            texts = self.text.decode(pair.answer), self.text.decode(pred[at:end])
            results.append(Scored(pair.answer, pred[at:end], logprob[at:end], *texts, info=pair.reading.info))
            at = end
        return results

    @torch.no_grad()
    def perplexity(self, text: str, window: int = 256) -> float:
        """exp of the mean NLL of `text`'s tokens, read in consecutive windows; each window's first token is given."""
        ids = self.text.prompts([text])[0]
        window = min(window, self.context)
        windows = [Pair(ids[i : i + window], 1, whole=True) for i in range(0, len(ids) - 1, window)]
        logprobs = [value for scored in self.score(windows) for value in scored.logprob]
        return float(torch.tensor(logprobs, dtype=torch.float64).mean().neg().exp())

    # --- free continuation --------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Route],
        max_new_tokens: int | Sequence[int] = 20,
        *,
        max_tokens: int | None = None,
        top_k: int = 1,
        seeds: Sequence[int] = (),
        stop: bool = True,
        until: Sequence[str] = (),
    ) -> list[Generated]:
        """Continue each prompt: greedily, or (top_k > 1) sampling with one seed for each prompt.

        A prompt's limit is `max_new_tokens` (one for all, or one each), or what `max_tokens`, prompt included, leaves.
        `stop`: end at the model's end-of-text token; otherwise only length ends. `until`: also end before the first of
        these strings.
        """
        routes = self._routes(prompts)
        encoded = self.text.prompts([route.prompt for route in routes])
        if max_tokens is not None:
            max_new_tokens = [max(0, max_tokens - len(ids)) for ids in encoded]
        limits = [max_new_tokens] * len(encoded) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        pairs = [with_prefix(Pair(ids, len(ids)), route.reading) for ids, route in zip(encoded, routes, strict=True)]
        eos = self._eos if stop else frozenset()
        new = self._continue(pairs, limits, top_k=top_k, seeds=seeds, eos=eos, until=until)
        texts = [self.text.decode(tokens) for tokens in new]
        full = [self.text.decode(ids + tokens) for ids, tokens in zip(encoded, new, strict=True)]
        cut, ends = cut_at(until, texts, [len(n) < most for n, most in zip(new, limits, strict=True)])
        full = [f[: len(f) - (len(t) - len(c))] for f, t, c in zip(full, texts, cut, strict=True)]
        infos = [{**route.info, **pair.reading.info} for route, pair in zip(routes, pairs, strict=True)]
        return [Generated(*one) for one in zip(cut, full, infos, new, ends, strict=True)]

    def greedy_continuation(self, batch: Batch) -> Batch:
        """Each row's prompt with what the model greedily says next, as many tokens as the row's answer has."""
        prompts = [Pair(pair.prompt, pair.start, pair.reading) for pair in batch.pairs]
        new = self._continue(prompts, [len(pair.answer) for pair in batch.pairs])
        said = zip(batch.pairs, new, strict=True)
        return self.batch([Pair(pair.prompt + more, pair.start, pair.reading) for pair, more in said])

    def _continue(
        self,
        pairs: Sequence[Pair],
        limits: Sequence[int],
        *,
        top_k: int = 1,
        seeds: Sequence[int] = (),
        eos: frozenset[int] = frozenset(),
        until: Sequence[str] = (),
    ) -> list[list[int]]:
        """New tokens for each prompt, in batches whose keys and values fit the generation budget."""

        def run(now: list[int]) -> list[list[int]]:
            some, most = [pairs[i] for i in now], [limits[i] for i in now]
            choose = SeededTopK(top_k, [seeds[i] for i in now], max(most), self.device) if top_k > 1 else greedy
            steps, stop = Steps(self, some), Stop(most, eos, said_one_of(until, self.text.decode) if until else None)
            return continue_batch(steps.step, steps.select, [pair.ids for pair in some], choose, stop, self.device)

        token = key_value_bytes(self.model.config, self.dtype.itemsize)
        sizes = [(len(pair.ids) + limit) * token for pair, limit in zip(pairs, limits, strict=True)]
        return in_batches(sizes, run, self.generation_budget, [pair.reading.variant for pair in pairs])

    # --- gradients ----------------------------------------------------------------------------------------------------

    capture = capture

    # --- leaving ------------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path, *, adapter: bool = False) -> None:
        """The model as it is now, as a transformers directory that loads with plain transformers; a trained adapter is
        added to the weights. Interventions, soft prompts and what routes give the model to read are no part of it: a
        warning says what is lost. `adapter`: write the trained adapter alone, as peft does; InputError without one."""
        for lost in dict.fromkeys(one.lost or f"an intervention at {one.module}" for one in self.changes.interventions):
            log.warning("%s: %s is not saved", directory, lost)
        if self.route is not unrouted:
            log.warning("%s: what the editor gives the model to read is not saved", directory)
        self.adapters.remove()
        write = self.save_adapter if adapter else partial(save_merged, self.model)  # type: ignore[arg-type]
        write(Path(directory))
        self.text.tokenizer.save_pretrained(directory)


def _with_info(scored: Scored, route: Route) -> Scored:
    return replace(scored, info={**route.info, **scored.info})


def _ids(tokens: int | list[int] | None) -> frozenset[int]:
    return frozenset() if tokens is None else frozenset([tokens] if isinstance(tokens, int) else tokens)


def _cache_bytes(device: torch.device) -> int:
    """What keys and values of one batch may take: a third of a GPU's free memory, 1 GiB on a CPU."""
    return torch.cuda.mem_get_info(device)[0] // 3 if device.type == "cuda" else 2**30
