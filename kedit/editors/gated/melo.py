"""MELO (Yu et al. 2024, arXiv 2312.11795): a block of low-rank adapters for each edit, chosen by a vector store."""

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kedit.cases import Edit
from kedit.common.errors import InputError
from kedit.common.options import Count, Layers, PathText, Positive, Rank, Rate, Share
from kedit.editors.finetune.base import finite
from kedit.editors.gated import EntryRow, given
from kedit.editors.gated.base import Cost, Gated
from kedit.editors.gated.clusters import NO_BLOCK, Clusters, placed
from kedit.editors.gated.gate import Key, LabelMatch, Verdict, at_columns, key_columns
from kedit.editors.gated.store import Store, label, with_row
from kedit.lm import LM, Pass
from kedit.lm.intervention import Change
from kedit.lm.matrices import MatrixPart, matrix_name, widths_of
from kedit.lm.partial_forward import TrainingForward
from kedit.lm.text import Pair
from kedit.lm.trained import nothing_trained
from kedit.losses import Loss, LossInputs

Block = tuple[Float[Tensor, "i r"], Float[Tensor, "r o"]]  # A and B of one adapted matrix


@dataclass(kw_only=True, eq=False)
class MELO(Gated):
    """A prompt whose key (what the routing matrix puts out at the prompt's last token) lies in a cluster of edited
    prompts is read with the block of the nearest of them: xAB, of `rank`, is added to what `adapted_part` of
    `adapted_layers` puts out (null: of the two layers above the routing matrix's).

    A block is trained by Adam for `steps` steps; the rate is multiplied by `decay` after every `decay_every`. A begins
    uniform within ± 1/√inputs, B at 0. `radius` is that of a new cluster.

    `num_block`: as the released code, which makes so many blocks before the first edit: A begins within
    ± 1/√(num_block · rank), and the product is multiplied by num_block. `initial_blocks`: a safetensors file whose
    tensors "A.0", "A.1", ... [edits, inputs, rank] are where the A of each adapted matrix begin.
    """

    name: ClassVar[str] = "melo"
    lost: ClassVar[str] = "MELO's blocks and clusters"

    loss: Loss
    steps: Count
    lr: Rate
    radius: Positive
    rank: Rank
    decay: Share = 0.5
    decay_every: Count = 20
    scale: Positive = 1.0
    adapted_part: MatrixPart = "mlp_in"
    adapted_layers: Layers | None = None
    initial_blocks: PathText | None = None

    # what the released code does otherwise
    key: Key = "prompt"  # prompt_and_answer: at the last token of all that is read, answer included
    num_block: Count | None = None
    label_match: LabelMatch = "tokens"
    same_prompt: Literal["replace", "split"] = "replace"  # split: a second cluster there

    def __post_init__(self) -> None:
        given.check("editor.initial_blocks", self.initial_blocks)

    @property
    def prompt_decides(self) -> bool:  # type: ignore[override]
        return self.key == "prompt"

    def gated_layer(self, lm: LM) -> int:
        """The layer that routes; where it is chosen by depth, there is one above it."""
        layer = super().gated_layer(lm)
        return layer if self.layer is not None else max(0, min(layer, lm.anatomy.n_layers - 2))

    def adapted(self, lm: LM) -> list[str]:
        """The matrices that blocks are added to."""
        routing, last = self.gated_layer(lm), lm.anatomy.n_layers - 1
        layers = self.adapted_layers
        if layers is None:
            layers = range(routing + 1, min(routing + 2, last) + 1)
        if not layers or min(layers) <= routing:
            raise InputError(
                f"editor.adapted_layers={list(layers)}: they must lie above the routing layer {routing}, where it is "
                f"decided which block is read; the last layer is {last}"
            )
        return [matrix_name(lm.model, lm.anatomy, self.adapted_part, layer) for layer in layers]

    def changes(self, lm: LM) -> Mapping[str, Change]:
        store, scale = self.store(lm), self.product_scale
        blocks = {name: BlockGate(store, i, scale) for i, name in enumerate(self.adapted(lm))}
        return {self.module(lm): RoutingGate(store, self.key)} | blocks

    @property
    def product_scale(self) -> float:
        return self.scale * (self.num_block or 1)

    def learn(self, lm: LM, store: Store, edit: Edit) -> Cost:
        number = store.edits
        [pair] = lm.text.pairs([edit.prompt], [edit.target_new])
        end = pair.start if self.key == "prompt" else len(pair.ids)
        with lm.only_intervening({}):
            key = lm.hidden([pair.ids], self.module(lm), at="all")[0][end - 1]
        mine = label(pair.prompt, pair.answer, key.device)
        replaces = self.same_prompt == "replace"
        clusters = placed(Clusters.read(store), key, mine, number, self.radius, self.label_match, replaces)
        trained, loss = self._train(lm, edit, pair, self._initial(lm, number))
        clusters.write(store)
        for i, (a, b) in enumerate(trained):
            store.put(**{f"A.{i}": with_row(store.get(f"A.{i}"), a), f"B.{i}": with_row(store.get(f"B.{i}"), b)})
        return {"steps": self.steps, "loss": loss}

    def entries(self, state: Mapping[str, Tensor | str]) -> list[EntryRow]:
        """The points of its clusters."""
        saved = self.saved(state)
        if "points" not in saved:
            return []
        cluster = saved["cluster"].tolist()
        away = (saved["points"] - saved["centers"][saved["cluster"]]).norm(dim=-1).tolist()
        return [
            {"edit": edit, "cluster": c, "radius": float(saved["radii"][c]), "from center": distance}
            for edit, c, distance in zip(saved["blocks"].tolist(), cluster, away, strict=True)
            if edit != NO_BLOCK
        ]

    def _initial(self, lm: LM, number: int) -> list[Block]:
        blocks = []
        for i, name in enumerate(self.adapted(lm)):
            module = lm.model.get_submodule(name)
            inputs, outputs = widths_of(module)
            bound = 1 / math.sqrt(inputs if self.num_block is None else self.num_block * self.rank)
            a = given.given("editor.initial_blocks", self.initial_blocks, f"A.{i}", number)
            a = torch.empty(inputs, self.rank).uniform_(-bound, bound) if a is None else a
            weight: Tensor = module.weight  # type: ignore[assignment]
            a = a.to(weight.device, torch.float32)
            blocks.append((a, a.new_zeros(self.rank, outputs)))
        return blocks

    def _train(self, lm: LM, edit: Edit, pair: Pair, blocks: list[Block]) -> tuple[list[Block], float]:
        """The blocks, and the loss before the last step."""
        batch, loss, last = lm.batch([pair]), deepcopy(self.loss), 0.0
        leaves = [part.clone().requires_grad_(True) for block in blocks for part in block]
        pairs = list(zip(leaves[::2], leaves[1::2], strict=True))
        optimizer = torch.optim.Adam(leaves, self.lr)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, self.decay_every, self.decay)
        names = self.adapted(lm)
        changes = {name: AddsBlock(block, self.product_scale) for name, block in zip(names, pairs, strict=True)}
        with lm.only_intervening(changes):
            passes = TrainingForward(lm, [f"{name}.weight" for name in names])
            view = LossInputs(lm, [edit], batch, nothing_trained(), passes)
            for step in range(self.steps):
                logits = view.logits().float()
                if step == 0:
                    loss.refresh(view, logits.detach(), 0)
                value = loss(view, logits).mean()
                last = finite(value)
                if value.requires_grad:
                    optimizer.zero_grad()
                    value.backward()
                    optimizer.step()
                schedule.step()
        return [(a.detach(), b.detach()) for a, b in pairs], last


@dataclass(frozen=True, eq=False)
class AddsBlock:
    """The intervention that trains a block: every row reads it."""

    block: Block
    scale: float

    def __call__(self, this: Pass, entered: Float[Tensor, "n t i"], output: Float[Tensor, "n t o"]) -> Tensor:
        a, b = self.block
        return output + (self.scale * (entered.float() @ a @ b)).to(output)


@dataclass(frozen=True)
class RoutingGate:
    """Decides at the routing matrix which block each row is read with; what the matrix puts out stays."""

    store: Store
    key: Key

    def __call__(self, this: Pass, entered: Tensor, output: Float[Tensor, "n t k"]) -> Float[Tensor, "n t k"]:
        if this.continues and self.key == "prompt":
            return output
        verdict = Verdict.none(len(output), output.device)
        columns = key_columns(this, self.key)
        queries = at_columns(output, columns)
        clusters = Clusters.read(self.store)
        if clusters is not None:
            found = clusters.find(queries)
            verdict = replace(found, open=found.open & (columns.to(found.open.device) >= 0))
        verdict.note(this, lambda slot: slot)  # every edit has a block of its own
        this.memo["melo.block"] = torch.where(verdict.open, verdict.slot, -1)
        return output


@dataclass(frozen=True)
class BlockGate:
    """Adds to each row what its block, if it has one, makes of what enters the matrix."""

    store: Store
    index: int  # number of the matrix among those that are adapted
    scale: float

    def __call__(self, this: Pass, entered: Float[Tensor, "n t i"], output: Float[Tensor, "n t o"]) -> Tensor:
        chosen: Int[Tensor, " n"] = this.memo["melo.block"].to(output.device)
        rows = (chosen >= 0).nonzero()[:, 0]
        if not len(rows):
            return output
        a, b = (self.store[f"{side}.{self.index}"].to(output.device)[chosen[rows]] for side in "AB")
        added = self.scale * torch.bmm(torch.bmm(entered[rows].float(), a), b)
        return output.index_add(0, rows, added.to(output))
