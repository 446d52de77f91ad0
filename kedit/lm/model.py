"""LM: the model that is edited, scored and continued; the only place that meets devices, padding and memory."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.common.errors import InputError
from kedit.lm.anatomy import inspect_anatomy
from kedit.lm.embedding_deltas import EmbeddingDeltas, TokenKey
from kedit.lm.generate import SeededTopK, continue_batch, greedy
from kedit.lm.hooks import entering
from kedit.lm.mixed_adapters import Adapters
from kedit.lm.partial_forward import LowerLayerCache
from kedit.lm.text import Batch, Mask, Pair, Side, Text, collate
from kedit.lm.undo import UndoLog

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Wanted = tuple[str, str, str | None]  # prompt, answer, adapter
POOL = 4096  # pairs that are tokenised and sorted by length together


@dataclass(frozen=True, slots=True)
class Route:
    """Where a prompt goes: the text the model really reads, with which adapter (see `LM.adapt`; None: as it is), and
    what the routing wants kept in the rows."""

    prompt: str
    adapter: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model says at the answer positions of one prompt, teacher-forced; one entry for each answer token."""

    gold: list[int]  # the answer's ids
    pred: list[int]  # argmax ids
    logprob: list[float]  # log-probability of gold
    gold_text: str
    pred_text: str
    info: Mapping[str, Any] = field(default_factory=dict)  # of the prompt's route


@dataclass(frozen=True, slots=True)
class Generated:
    """What a model wrote: the continuation, and the whole text it belongs to."""

    text: str
    full: str  # prompt + continuation, special tokens removed
    info: Mapping[str, Any] = field(default_factory=dict)  # of the prompt's route


Router = Callable[[Sequence[str], Sequence[str]], Sequence[Route]]  # of prompts, and of what each is looked up by


def unrouted(prompts: Sequence[str], keys: Sequence[str]) -> list[Route]:
    return [Route(prompt) for prompt in prompts]


class LM(UndoLog):
    """A causal language model with its tokenizer.

    `identity` says which model it is (file hashes, or a hub commit); what it answers is cached under it, and not at
    all where it is None. `token_budget` (tokens of a scoring batch; null: by device; halved when memory runs out),
    `padding_side` and `keep_mb` (memory for the cached lower layers, see `cache_lower_layers`) change no score.
    In-context and memory editors set `route`; it is called once for each batch of prompts before they are scored or
    continued (see `routed`), and `restore` unsets it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        identity: str | None = None,
        token_budget: int | None = None,
        padding_side: Side = "right",
        keep_edge_spaces: bool = False,
        keep_mb: float = 1024.0,
    ):
        super().__init__(model.eval().requires_grad_(False))
        self.text = Text(tokenizer, keep_edge_spaces)
        self.anatomy = inspect_anatomy(model)
        self.identity, self.padding_side = identity, padding_side
        # larger batches are slower on a CPU: what they compute leaves its cache
        self.token_budget = token_budget or (512 if next(model.parameters()).device.type == "cpu" else 8192)
        self.route: Router = unrouted
        self._body = model.get_submodule(self.anatomy.body)
        self._head_module = model.get_submodule(self.anatomy.head)
        self.embedding_deltas = EmbeddingDeltas(model)
        self.adapters = Adapters(model)
        self._lower_layers = LowerLayerCache(model, self.anatomy, int(keep_mb * 2**20))
        # the most tokens that the model reads
        self.context = getattr(model.config, "max_position_embeddings", sys.maxsize)
        self._eos = self.text.eos | _ids(getattr(model.generation_config, "eos_token_id", None))

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return _device(self.model.get_input_embeddings())  # type: ignore[operator]

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def restore(self) -> None:
        super().restore()
        self.route = unrouted

    def add_embedding_deltas(self, known: Mapping[TokenKey, Float[Tensor, "_ d"]], *, everywhere: bool = False) -> None:
        """From now on, until `restore`, this is added to the input embeddings of these token sequences, and of no
        others: in each prompt to the longest that it holds. `everywhere`: also where it stands in an answer."""
        if not self.embedding_deltas.active:
            if not known:
                return
            self.on_restore(self.embedding_deltas.clear, [self.embedding_deltas.name])
        self.embedding_deltas.set(known, everywhere)

    def adapt(self, name: str, folder: Path) -> None:
        """Put a low-rank adapter that peft has saved into the model, until `restore`; it reads the prompts whose Route
        names it, and no others. Nothing happens where one of this name is there."""
        if name in self.adapters:
            return
        if not self.adapters.active:
            self.on_restore(self.adapters.remove)
        self.adapters.add(name, folder)

    def routed(self, prompts: Sequence[str], keys: Sequence[str] | None = None) -> Sequence[Route]:
        """Where each prompt goes. `keys`: what it is looked up by, where that is not the prompt itself."""
        return self.route(prompts, prompts if keys is None else keys)

    def _routes(self, prompts: Sequence[str] | Sequence[Route]) -> list[Route]:
        """Prompts that are no Routes yet are routed."""
        given = [prompt for prompt in prompts if isinstance(prompt, Route)]
        return given if len(given) == len(prompts) else list(self.routed([str(prompt) for prompt in prompts]))

    @torch.no_grad()
    def cache_lower_layers(
        self, names: Sequence[str], prompts: Sequence[str] = (), answers: Sequence[str] = ()
    ) -> None:
        """Say which parameters edits will change (none: nobody knows) and what will be asked: scoring it, before and
        after edits, then begins at the first of their layers. Only on the pristine model."""
        distinct = list(dict.fromkeys(zip(prompts, answers, strict=True))) if names else []
        pairs = self.text.pairs([p for p, _ in distinct], [a for _, a in distinct])
        if self._lower_layers.begin(names, pairs):
            self.batched([len(pair.ids) for pair in pairs], lambda now: self._keep([pairs[i] for i in now]))

    def _keep(self, pairs: Sequence[Pair]) -> list[bool]:
        batch = self.batch(pairs)
        self._lower_layers.add(batch, lambda: self._answer_states(batch))
        return [True] * len(pairs)

    def using_cache(self, batch: Batch) -> AbstractContextManager[None]:
        """A pass over the batch inside begins with what is kept of all its rows, where that still holds. The edits of a
        run are among its questions, so what lies below them is computed for all, in batches, before the first."""
        return self._lower_layers.using(batch, self.changed)

    @property
    def cache_bytes(self) -> int:
        return self._lower_layers.bytes

    # --- teacher-forced answers --------------------------------------------------------------------------------------

    def encode(self, prompts: Sequence[str], answers: Sequence[str], mask: Mask = "positional") -> Batch:
        """Tokenise once; the batch serves any number of forward passes. `mask` says whether its k places are the
        answers' alone."""
        return self.batch(self.text.pairs(prompts, answers), mask)

    def encode_texts(self, texts: Sequence[str], max_tokens: int) -> Batch:
        """The beginning of each text, every token of it but the first to be predicted."""
        length = min(max_tokens, self.context)
        pairs = [Pair(ids[:length], 1) for ids in self.text.prompts(texts) if len(ids) > 1]
        return self.batch(pairs)

    def joined(self, *batches: Batch) -> Batch:
        """The rows of all of them, in order."""
        return self.batch([pair for batch in batches for pair in batch.pairs])

    def greedy_continuation(self, batch: Batch) -> Batch:
        """Each row's prompt with what the model greedily says next, as many tokens as the row's answer has."""
        prompts, limits = [pair.prompt for pair in batch.pairs], [len(pair.answer) for pair in batch.pairs]
        with self.adapters.reading([pair.adapter for pair in batch.pairs]):
            new = continue_batch(self._continuing, self._head, prompts, limits, greedy, frozenset(), self.device)
        said = zip(batch.pairs, new, strict=True)
        return self.batch([Pair(pair.prompt + more, pair.start, pair.adapter) for pair, more in said])

    def batch(self, pairs: Sequence[Pair], mask: Mask = "positional") -> Batch:
        """Of token sequences that are at hand."""
        self.check_length(max(len(pair.ids) for pair in pairs))
        return collate(pairs, self.text.pad, self.padding_side, self.device, _device(self._head_module), mask)

    def check_length(self, longest: int) -> None:
        """Raises InputError where the model cannot read so many tokens."""
        if longest > self.context:
            raise InputError(
                f"a prompt with its answer has {longest} tokens, the model reads {self.context}; "
                "drop it, or take another model"
            )

    def embeddings(self, tokens: Sequence[int]) -> Float[Tensor, "t d"]:
        """The model's own input embeddings of these tokens."""
        with torch.no_grad(), self.embedding_deltas.disabled():
            return self.embedding_deltas.module(torch.tensor(tokens, device=self.device))

    def answer_logits(self, batch: Batch) -> Float[Tensor, "k v"]:
        """Logits at the k positions that predict `batch.gold`, and nowhere else."""
        return self._head(self._answer_states(batch))

    def _answer_states(self, batch: Batch) -> Float[Tensor, "k d"]:
        """Last hidden states there. Padded on the right, no mask is needed: attention is causal, pads come later."""
        kwargs = {}
        if self.padding_side == "left":
            kwargs = {"attention_mask": batch.mask, "position_ids": (batch.mask.cumsum(-1) - 1).clamp(min=0)}
        with self._searched(batch), self.adapters.reading([pair.adapter for pair in batch.pairs]):
            hidden = self._body(input_ids=batch.ids, use_cache=False, **kwargs)[0]
        return hidden[batch.row.to(hidden.device), batch.col.to(hidden.device)]

    def _searched(self, batch: Batch) -> AbstractContextManager[None]:
        """A pass over the batch inside alters what stands in its prompts."""
        if not self.embedding_deltas.active:
            return nullcontext()
        return self.embedding_deltas.within(batch.mask if self.embedding_deltas.everywhere else batch.in_prompt)

    def _continuing(self, **kwargs: Any) -> Any:
        """A pass of a continuation: the first reads the prompts."""
        ids, mask, first = kwargs["input_ids"], kwargs["attention_mask"], kwargs["past_key_values"] is None
        with self.embedding_deltas.within(mask.bool() if first else torch.zeros_like(ids, dtype=torch.bool)):
            return self._body(**kwargs)

    @torch.no_grad()
    def matrix_inputs(
        self,
        sequences: Sequence[Sequence[int]],
        layers: Sequence[int],
        take: Callable[[Mapping[int, Float[Tensor, "t f"]]], None],
    ) -> None:
        """Give `take`, a batch at a time, what enters the MLP's output matrix of each of these layers at every token
        of these token sequences. A pass goes no further than the last of the matrices."""
        pairs = [Pair(list(ids), len(ids)) for ids in sequences]
        matrices = {layer: self.model.get_submodule(self.anatomy.mlp_out.format(layer)) for layer in sorted(layers)}

        def run(now: list[int]) -> list[bool]:
            batch = self.batch([pairs[i] for i in now])
            entered = entering(matrices, lambda: self._answer_states(batch))
            take({layer: states[batch.mask.to(states.device)] for layer, states in entered.items()})
            return [True] * len(now)

        self.batched([len(pair.ids) for pair in pairs], run)

    def _head(self, states: Float[Tensor, "k d"]) -> Float[Tensor, "k v"]:
        logits = self._head_module(states)
        cap = getattr(self.model.config, "final_logit_softcapping", None)  # Gemma 2
        return torch.tanh(logits / cap) * cap if cap else logits

    @torch.no_grad()
    def answer(self, prompts: Sequence[str] | Sequence[Route], answers: Sequence[str]) -> list[Scored]:
        """Argmax ids and gold log-probabilities of every answer, from one pass.

        Pooled: equal pairs are scored once, batches are formed by length within `token_budget`; no score depends on it.
        """
        routes = self._routes(prompts)
        wanted = _wanted(routes, answers)
        distinct = list(dict.fromkeys(wanted))
        scored: dict[Wanted, Scored] = {}
        for some in (distinct[i : i + POOL] for i in range(0, len(distinct), POOL)):
            scored |= zip(some, self._score(self._pairs(some)), strict=True)
        return [replace(scored[pair], info=route.info) for pair, route in zip(wanted, routes, strict=True)]

    @torch.no_grad()
    def score_greedy_continuation(
        self, prompts: Sequence[str] | Sequence[Route], answers: Sequence[str]
    ) -> list[Scored]:
        """As `answer`, of what the model itself says next: greedily, as many tokens as each answer has."""
        routes = self._routes(prompts)
        said = self.greedy_continuation(self.batch(self._pairs(_wanted(routes, answers))))
        return [replace(one, info=route.info) for one, route in zip(self._score(said.pairs), routes, strict=True)]

    def _pairs(self, wanted: Sequence[Wanted]) -> list[Pair]:
        pairs = self.text.pairs([prompt for prompt, _, _ in wanted], [answer for _, answer, _ in wanted])
        return [replace(pair, adapter=adapter) for pair, (_, _, adapter) in zip(pairs, wanted, strict=True)]

    def _score(self, pairs: Sequence[Pair]) -> list[Scored]:
        return self.batched([len(pair.ids) for pair in pairs], lambda now: self._score_batch([pairs[i] for i in now]))

    def _score_batch(self, pairs: Sequence[Pair]) -> list[Scored]:
        batch = self.batch(pairs)
        pred: list[int] = []
        logprob: list[float] = []
        with self.using_cache(batch):
            answer_states = self._answer_states(batch)
        for states, gold in zip(answer_states.split(512), batch.gold.split(512), strict=True):
            logits = self._head(states).float()  # of 512 positions at a time: vocabularies are large
            pred += logits.argmax(-1).tolist()
            logprob += logits.log_softmax(-1).gather(-1, gold[:, None])[:, 0].tolist()
        results, at = [], 0
        for pair in pairs:
            end = at + len(pair.answer)
            texts = self.text.decode(pair.answer), self.text.decode(pred[at:end])
            results.append(Scored(pair.answer, pred[at:end], logprob[at:end], *texts))
            at = end
        return results

    @torch.no_grad()
    def perplexity(self, text: str, window: int = 256) -> float:
        """exp of the mean NLL of `text`'s tokens, read in consecutive windows; each window's first token is given."""
        ids = self.text.prompts([text])[0]
        window = min(window, self.context)
        windows = [Pair(ids[i : i + window], 1) for i in range(0, len(ids) - 1, window)]
        logprobs = [value for scored in self._score(windows) for value in scored.logprob]
        return float(torch.tensor(logprobs, dtype=torch.float64).mean().neg().exp())

    # --- free continuation -------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Route],
        max_new_tokens: int | Sequence[int] = 20,
        *,
        max_tokens: int | None = None,
        top_k: int = 1,
        seeds: Sequence[int] = (),
        stop: bool = True,
    ) -> list[Generated]:
        """Continue each prompt: greedily, or (top_k > 1) sampling with one seed for each prompt.

        A prompt's limit is `max_new_tokens` (one for all, or one each), or what `max_tokens`, prompt included, leaves.
        `stop`: end at the model's end-of-text token; otherwise only length ends.
        """
        routes = self._routes(prompts)
        encoded = self.text.prompts([route.prompt for route in routes])
        if max_tokens is not None:
            max_new_tokens = [max(0, max_tokens - len(ids)) for ids in encoded]
        limits = [max_new_tokens] * len(encoded) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        eos = self._eos if stop else frozenset()

        def run(now: list[int]) -> list[list[int]]:
            steps = max(limits[i] for i in now)
            choose = SeededTopK(top_k, [seeds[i] for i in now], steps) if top_k > 1 else greedy
            asked = [encoded[i] for i in now], [limits[i] for i in now]
            with self.adapters.reading([routes[i].adapter for i in now]):
                return continue_batch(self._continuing, self._head, *asked, choose, eos, self.device)

        # a step reads one token of each row, so more of them go together than in scoring
        new = self.batched([(len(ids) + limit) // 16 + 1 for ids, limit in zip(encoded, limits, strict=True)], run)
        texts = [(self.text.decode(n), self.text.decode(p + n)) for p, n in zip(encoded, new, strict=True)]
        return [Generated(*text, route.info) for text, route in zip(texts, routes, strict=True)]

    def batched(self, lengths: Sequence[int], run: Callable[[list[int]], list[Result]]) -> list[Result]:
        """`run` on batches of indices, shortest first, each within the token budget; results in the given order.

        When memory runs out the budget is halved for good and the batch is formed again.
        """
        results: dict[int, Result] = {}
        order = sorted(range(len(lengths)), key=lambda i: lengths[i])
        while order:
            now = order[: fill([lengths[i] for i in order], self.token_budget)]
            try:
                results |= zip(now, run(now), strict=True)
            except RuntimeError as error:
                if not should_reduce_batch_size(error) or len(now) == 1:
                    raise
                self.token_budget = max(1, len(now) * lengths[now[-1]] // 2)
                log.warning("out of memory: batches now hold %d tokens", self.token_budget)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            order = order[len(now) :]
        return [results[i] for i in range(len(lengths))]

    # --- leaving -----------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """The model as it is now, as a transformers directory that loads with plain transformers; what `alter` adds and
        what routes give it to read is no part of it."""
        if self.embedding_deltas.active:
            log.warning(
                "%s: the altered embeddings of %d subjects are not saved", directory, len(self.embedding_deltas.known)
            )
        if self.route is not unrouted:
            log.warning("%s: what the editor gives it to read is not saved", directory)
        self.adapters.remove()
        self.model.save_pretrained(directory)  # type: ignore[operator]
        self.text.tokenizer.save_pretrained(directory)


def fill(lengths: Sequence[int], budget: int) -> int:
    """How many of the first `lengths` (ascending) fit one padded batch of `budget` tokens; at least one."""
    count = 1
    while count < len(lengths) and lengths[count] * (count + 1) <= budget:
        count += 1
    return count


def _wanted(routes: Sequence[Route], answers: Sequence[str]) -> list[Wanted]:
    return [(route.prompt, answer, route.adapter) for route, answer in zip(routes, answers, strict=True)]


def _device(module: nn.Module) -> torch.device:
    """Where a module computes: an offloaded one says so in accelerate's hook only."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return torch.device(device) if device is not None else next(module.parameters()).device


def _ids(tokens: int | list[int] | None) -> frozenset[int]:
    return frozenset() if tokens is None else frozenset([tokens] if isinstance(tokens, int) else tokens)
