"""WISE (Wang et al. 2024, arXiv 2405.14768): side memories of one matrix, read where they move activations far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Gt, Le, Predicate
from jaxtyping import Bool, Float
from torch import Tensor

from kedit.cases import Case, Edit
from kedit.common.errors import InputError
from kedit.common.options import Amount, Count, OneOrMore, PathText, Positive, Rate, Rule, Share, Text
from kedit.editors.gated import EntryRow, given
from kedit.editors.gated.base import Cost, Gated
from kedit.editors.gated.loc_prompts import LocPrompts
from kedit.editors.gated.side_memory import DecidedFor, DistanceOver, SideGate, merge_saved, save_side, side_of
from kedit.editors.gated.store import Store
from kedit.editors.gated.wise_training import train_side
from kedit.editors.locate.context_templates import BARE, BRACES
from kedit.editors.locate.context_templates import given as checked
from kedit.lm import LM
from kedit.lm.intervention import Change
from kedit.losses import Loss

Margins = Annotated[
    Sequence[Amount], Predicate(lambda margins: len(margins) == 3), Rule("three numbers: alpha, beta and gamma")
]
MERGED = (0.4, 0.6)  # shares of new memories and of the one that they are merged into


@dataclass(kw_only=True)
class GreedyContexts:
    """Texts that the unedited model continues greedily from these words, by so many tokens each."""

    words: OneOrMore[Text] = ("I", "You", "Because", "Yes", "Q: ")
    tokens: OneOrMore[Count] = (5, 10)

    def __call__(self, lm: LM) -> list[str]:
        lm.check_unedited("sampling context templates")
        texts = [
            text.full.translate(BRACES).strip()
            for length in self.tokens
            for text in lm.generate(list(self.words), length, stop=False)
        ]
        return [BARE, *(f"{text} {BARE}" for text in texts)]


@dataclass(kw_only=True, eq=False)
class WISE(Gated):
    """Edits train a copy of one matrix, the side memory, by `steps` steps of SGD on a random share `mask_ratio` of its
    entries. An edit is read behind each context template; `loc_prompts` gives a text that it is not about.

    The loss is that of the answer, and `margins` (alpha, beta, gamma), times `margins_times`, on how far activations
    move: see activation_loss.
    A prompt reads the side memory if it moves the prompt's activations by `ratio` times the least distance of an edit
    in it, or more. After `save_every` edits the memory is kept and a fresh one, with another mask, begins; after
    `merge_every` the kept ones are merged by TIES: into one more memory that is kept (`mode` retrieve), or all into
    one (`mode` merge).

    `masks`: a safetensors file whose tensor "masks" gives them in the place of random ones. `chat`: prompts are user
    turns of the tokenizer's chat template.
    """

    name: ClassVar[str] = "wise"
    lost: ClassVar[str] = "WISE's side memories"
    forgets_some: ClassVar[bool] = True  # training goes on in one memory, and may bring an edit below the threshold

    loss: Loss
    loc_prompts: LocPrompts
    steps: Count
    lr: Rate
    weight_decay: Amount
    mask_ratio: Annotated[float, Gt(0), Le(1)]
    norm_constraint: Positive | None
    margins: Margins
    ratio: Amount
    margins_times: Amount = 1.0
    stop_loss: Amount = 0.02
    still: Amount = 1e-4
    save_every: Count = 500
    merge_every: Count = 1000
    density: Share = 0.53
    mode: Literal["retrieve", "merge"] = "retrieve"
    context_templates: OneOrMore[Text] | None = None
    sampling: GreedyContexts | None = None
    masks: PathText | None = None
    chat: bool = False
    double_bos: bool = False

    # what the released code does otherwise
    distance_over: DistanceOver = "prompt"  # all: of prompt and answer, and of each generated token by itself
    decided_for: DecidedFor = "row"  # batch: the mean distance of its rows decides for all of them
    largest_from: Count | None = None  # 101: of texts of so many tokens, the largest distance of one token
    loss_denominator: Literal["tokens", "tokens_and_one"] = "tokens"  # what the answer's loss is divided by
    decay_masked: bool = False  # weight decay also moves the entries that are not trained

    def __post_init__(self) -> None:
        given.check("editor.masks", self.masks)
        if self.merge_every % self.save_every:
            raise InputError(
                f"editor.merge_every={self.merge_every} is no multiple of editor.save_every={self.save_every}, after "
                "which there is a memory to merge; give one"
            )
        self.templates = checked(self.context_templates if self.context_templates is not None else [BARE])

    @property
    def needs_train(self) -> bool:  # type: ignore[override]
        return self.loc_prompts.needs_train

    @property
    def needs_locality_prompt(self) -> bool:  # type: ignore[override]
        return self.loc_prompts.needs_locality_prompt

    @property
    def prompt_decides(self) -> bool:  # type: ignore[override]
        return self.distance_over == "prompt" and self.decided_for == "row"

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        self.loc_prompts.fit(train)
        if self.context_templates is None and self.sampling is not None:
            self.templates = self.sampling(lm)

    def fit_report(self) -> Mapping[str, Any]:
        return {"context_templates": self.templates}

    def changes(self, lm: LM) -> Mapping[str, Change]:
        module = self.module(lm)
        gate = SideGate(self.store(lm), module, self.ratio, self.distance_over, self.decided_for, self.largest_from)
        return {module: gate}

    def learn(self, lm: LM, store: Store, edit: Edit) -> Cost:
        module, number = self.module(lm), store.edits
        side = store["side"] if "side" in store else side_of(lm, module)
        if number % self.save_every == 0:
            store.put(mask=self._mask(side, number // self.save_every))
        outside = self.loc_prompts.of(edit, number)
        trained = train_side(self, lm, side, store["mask"], self._in_contexts(lm, edit), outside)
        least = min(trained.distance, float(store["least"]) if "least" in store else trained.distance)
        store.put(side=trained.side, least=torch.tensor(least))
        self._keep(lm, store, number + 1)
        return {"steps": trained.steps, "loss": trained.loss}

    def entries(self, state: Mapping[str, Tensor | str]) -> list[EntryRow]:
        """Its side memories; each holds many edits."""
        saved = self.saved(state)
        if "side" not in saved:
            return []
        least = {"in training": saved.get("least")}
        least |= {f"saved {i}": value for i, value in enumerate(saved.get("saved_least", torch.empty(0)))}
        return [
            {"memory": name, "read from distance": None if value is None else self.ratio * float(value)}
            for name, value in least.items()
        ]

    def _in_contexts(self, lm: LM, edit: Edit) -> list[Edit]:
        prompts = [template.replace(BARE, edit.prompt) for template in self.templates]
        if self.chat:
            prompts = [lm.text.chat(prompt, self.double_bos) for prompt in prompts]
        return [replace(edit, prompt=prompt) for prompt in prompts]

    def _mask(self, side: Float[Tensor, "_ _"], index: int) -> Bool[Tensor, "_ _"]:
        """The entries that are trained until the next memory begins."""
        mask = given.given("editor.masks", self.masks, "masks", index)
        drawn = torch.rand(side.shape) < self.mask_ratio if mask is None else mask.bool()
        return drawn.to(side.device)

    def _keep(self, lm: LM, store: Store, edits: int) -> None:
        """Keep the memory, and merge those that are kept, when it is time."""
        if edits % self.save_every:
            return
        original = side_of(lm, self.module(lm))
        save_side(store, original)
        if edits % self.merge_every:
            return
        kept = len(store["saved_least"])
        new = self.merge_every // self.save_every
        if self.mode == "retrieve" or kept == new:
            merge_saved(store, original, new, self.density, [1 / new] * new)
        else:
            before, after = MERGED[1], MERGED[0] / new
            merge_saved(store, original, new + 1, self.density, [before, *[after] * new])
