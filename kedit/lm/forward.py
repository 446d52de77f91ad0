"""Passes of the model: which rows it reads, who acts inside, which layers are run, where logits are computed."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.common.errors import InputError
from kedit.lm.acting import Acting
from kedit.lm.anatomy import context_length, inspect_anatomy, vocabulary_size
from kedit.lm.batching import Budget, Result, in_batches
from kedit.lm.head import wrapper_logits
from kedit.lm.hooks import entering, leaving, one_text_a_row
from kedit.lm.intervention import Pass
from kedit.lm.partial_forward import LowerLayerCache, PartialForward, partial_forward_of
from kedit.lm.route import Reading
from kedit.lm.text import Batch, Mask, Pair, Side, Text, collate


class Forward(Acting):
    """A causal language model as something that is run: the part of LM below scoring and generation.

    Interventions act in every pass that goes through it: scoring, generation, perplexity, benchmarks.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        token_budget: int | None = None,
        padding_side: Side = "right",
        keep_edge_spaces: bool = False,
        keep_mb: float = 1024.0,
    ):
        super().__init__(model.eval().requires_grad_(False))
        self.text = Text(tokenizer, keep_edge_spaces, vocabulary_size(model))
        self.anatomy = inspect_anatomy(model)
        self.padding_side = padding_side
        # larger batches are slower on a CPU: what they compute leaves its cache
        on_cpu = next(model.parameters()).device.type == "cpu"
        self.scoring_budget = Budget(token_budget or (512 if on_cpu else 8192), "tokens")
        self.context = context_length(model.config)
        self._body = model.get_submodule(self.anatomy.body)
        self._head_module = model.get_submodule(self.anatomy.head)
        self._lower_layers = LowerLayerCache(model, self.anatomy, int(keep_mb * 2**20))

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return device_of(self.embedding)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def token_budget(self) -> int:
        """Tokens of a scoring batch."""
        return self.scoring_budget.limit

    @token_budget.setter
    def token_budget(self, tokens: int) -> None:
        self.scoring_budget.limit = tokens

    @property
    def embedding_module(self) -> str:
        """The name of the input embeddings."""
        return next(name for name, module in self.model.named_modules() if module is self.embedding)

    # --- one pass -----------------------------------------------------------------------------------------------------

    def body(self, this: Pass | None = None, **kwargs: Any) -> Any:
        """One pass through everything below the head; the keywords are transformers'."""
        this = this or Pass.over(kwargs["input_ids"])
        with self.passing(this), one_text_a_row():
            return self._body(**kwargs)

    def head(self, states: Float[Tensor, "k d"]) -> Float[Tensor, "k v"]:
        """Logits of last hidden states."""
        states = states.to(device_of(self._head_module))
        return wrapper_logits(self.model, self._body, states)  # type: ignore[arg-type]

    # --- batches ------------------------------------------------------------------------------------------------------

    def encode(
        self,
        prompts: Sequence[str],
        answers: Sequence[str],
        mask: Mask = "positional",
        variants: Sequence[int] | None = None,
    ) -> Batch:
        """Tokenise once; the batch serves any number of forward passes. `mask` says whether its k places are the
        answers' alone; `variants`, which variant of the model reads each row."""
        pairs = self.text.pairs(prompts, answers)
        if variants is not None:
            pairs = [replace(p, reading=Reading(variant=v)) for p, v in zip(pairs, variants, strict=True)]
        return self.batch(pairs, mask)

    def encode_texts(self, texts: Sequence[str], max_tokens: int) -> Batch:
        """The beginning of each text, every token of it but the first to be predicted."""
        length = min(max_tokens, self.context)
        pairs = [Pair(ids[:length], 1) for ids in self.text.prompts(texts) if len(ids) > 1]
        return self.batch(pairs)

    def interleaved(self, first: Batch, second: Batch) -> Batch:
        """The rows of two batches in turn."""
        return self.batch([pair for both in zip(first.pairs, second.pairs, strict=True) for pair in both])

    def batch(self, pairs: Sequence[Pair], mask: Mask = "positional") -> Batch:
        """A padded batch of token sequences."""
        self.check_length(max(len(pair.ids) for pair in pairs))
        return collate(pairs, self.text.pad, self.padding_side, self.device, device_of(self._head_module), mask)

    def check_length(self, longest: int) -> None:
        """Raises InputError if the model cannot read so many tokens."""
        if longest > self.context:
            raise InputError(
                f"prompt + answer is {longest} tokens, longer than the model's context ({self.context}); drop it, or "
                "use a model with a longer context"
            )

    def batched(
        self, lengths: Sequence[int], run: Callable[[list[int]], list[Result]], variants: Sequence[int] = ()
    ) -> list[Result]:
        """`run` on batches of indices within the token budget; results in the given order (see kedit.lm.batching)."""
        return in_batches(lengths, run, self.scoring_budget, variants)

    # --- passes over batches ------------------------------------------------------------------------------------------

    def answer_logits(self, batch: Batch) -> Float[Tensor, "k v"]:
        """Logits at the k positions that predict `batch.gold`, and nowhere else."""
        return self.head(self.answer_states(batch))

    def answer_states(self, batch: Batch) -> Float[Tensor, "k d"]:
        """Last hidden states there. Padded on the right, no mask is needed: attention is causal, pads come later."""
        kwargs = {}
        if self.padding_side == "left":
            kwargs = {"attention_mask": batch.mask, "position_ids": (batch.mask.cumsum(-1) - 1).clamp(min=0)}
        this = Pass(batch.mask, batch.in_prompt, who=[pair.reading for pair in batch.pairs])
        hidden = self.body(this, input_ids=batch.ids, use_cache=False, **kwargs)[0]
        return hidden[batch.row.to(hidden.device), batch.col.to(hidden.device)]

    def partial_forward(self, names: Sequence[str]) -> PartialForward | None:
        """The layers from the first one on that these parameters, or interventions, can change; None: all layers."""
        return partial_forward_of(self.model, self.anatomy, [*names, *self.acting_modules])

    def embeddings(self, tokens: Sequence[int]) -> Float[Tensor, "t d"]:
        """The model's own input embeddings of these tokens."""
        with torch.no_grad():
            return self.embedding(torch.tensor(tokens, device=self.device))

    @torch.no_grad()
    def hidden(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        module: str,
        *,
        at: Literal["last", "all"] = "last",
        end: Literal["in", "out"] = "out",
    ) -> list[Float[Tensor, "_ w"]]:
        """What enters or leaves a module while each prompt (text, or token ids) is read: at its last token, [1 w], or
        at every token, [t w]."""
        ids = [self.text.prompts([p])[0] if isinstance(p, str) else list(p) for p in prompts]
        found = self.batched(
            [len(tokens) for tokens in ids], lambda now: self._hidden([ids[i] for i in now], module, end)
        )
        return [states[-1:] for states in found] if at == "last" else found

    def _hidden(self, ids: Sequence[list[int]], name: str, end: str) -> list[Tensor]:
        """The pass goes no further than the module, and begins with the cached lower layers if they are below it."""
        batch, module = self.batch([Pair(tokens, len(tokens)) for tokens in ids]), self.model.get_submodule(name)
        this = Pass(batch.mask, batch.mask, who=[pair.reading for pair in batch.pairs])
        above = self.anatomy.first_layer([name]) >= self._lower_layers.first
        with self.passing(this), self.using_cache(batch) if above else nullcontext():
            if end == "in":
                states = entering({"": module}, lambda: self._read(batch))[""]
            else:
                states = leaving(module, lambda: self._read(batch))
        return [row[real.to(row.device)] for row, real in zip(states, batch.mask, strict=True)]

    def _read(self, batch: Batch) -> None:
        self._body(input_ids=batch.ids, use_cache=False, **self._mask_of(batch))

    def _mask_of(self, batch: Batch) -> dict[str, Tensor]:
        if self.padding_side == "right":
            return {}
        return {"attention_mask": batch.mask, "position_ids": (batch.mask.cumsum(-1) - 1).clamp(min=0)}

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
            entered = entering(matrices, lambda: self.answer_states(batch))
            take({layer: states[batch.mask.to(states.device)] for layer, states in entered.items()})
            return [True] * len(now)

        self.batched([len(pair.ids) for pair in pairs], run)

    # --- lower layers -------------------------------------------------------------------------------------------------

    def keep_lower_layers(self, names: Sequence[str], pairs: Sequence[Pair]) -> None:
        """Compute once what these token sequences bring to the first layer of these parameters."""
        if self._lower_layers.begin(names, pairs):
            self.batched([len(pair.ids) for pair in pairs], lambda now: self._keep([pairs[i] for i in now]))

    def _keep(self, pairs: Sequence[Pair]) -> list[bool]:
        batch = self.batch(pairs)
        self._lower_layers.add(batch, lambda: self.answer_states(batch))
        return [True] * len(pairs)

    def using_cache(self, batch: Batch) -> AbstractContextManager[None]:
        """A pass over the batch inside begins with the cached lower layers of all its rows, if they still hold: nothing
        below has changed, and no row carries a soft prompt, an adapter or another model.

        The edits of a run are among its questions, so their lower layers are computed for all, in batches, before the
        first.
        """
        plain = all(pair.reading.plain for pair in batch.pairs)
        return self._lower_layers.using(batch, self.changed) if plain else nullcontext()

    @property
    def keeps_lower_layers(self) -> bool:
        """Does scoring begin with cached lower layers?"""
        return self._lower_layers.tail is not None

    @property
    def cache_bytes(self) -> int:
        return self._lower_layers.bytes


def with_prefix(pair: Pair, reading: Reading) -> Pair:
    """The pair as a row that carries `reading`: places are left in front for its soft prompt."""
    if reading.prefix is None:
        return replace(pair, reading=reading)
    places = [pair.ids[0]] * len(reading.prefix)
    return replace(pair, ids=places + pair.ids, start=pair.start + len(places), reading=reading)


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: an offloaded one says so in accelerate's hook only."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return torch.device(device) if device is not None else next(module.parameters()).device
