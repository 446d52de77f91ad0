"""KE's network: it reads the edit, and scales its gradient entry by entry (De Cao et al. 2021, arXiv 2104.08164)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_sequence

from kedit.common.options import Count, Positive
from kedit.editors.hypernetwork.networks import NetworkOptions, UpdateNetwork
from kedit.editors.hypernetwork.outer_products import Gradients, OuterProducts
from kedit.lm.matrices import stored_by_input, widths
from kedit.lm.text import Batch

if TYPE_CHECKING:
    from kedit.lm.model import LM


@dataclass(frozen=True, kw_only=True)
class KnowledgeEditor(NetworkOptions):
    """A bidirectional LSTM of `hidden` units a direction reads the edit's tokens (prompt and answer, embedded as the
    model embeds them at first); from `condition` numbers that it leaves, a layer of `hidden` units for each matrix
    makes its change, at most `scale` times the scaled gradient and offset."""

    hidden: Count = 512
    condition: Count = 768
    scale: Positive = 1.0

    def build(self, lm: "LM", modules: Sequence[str]) -> "KnowledgeEditorNetwork":
        shapes = {name: Shape(*widths(lm, name), by_input=stored_by_input(lm, name)) for name in modules}
        embeddings = lm.parameter(f"{lm.embedding_module}.weight").detach()
        return KnowledgeEditorNetwork(self, shapes, embeddings).to(lm.device)


@dataclass(frozen=True, slots=True)
class Shape:
    """A matrix's shape: how many numbers enter and leave it, and whether its weight is stored [i o]."""

    inputs: int
    outputs: int
    by_input: bool


class KnowledgeEditorNetwork(UpdateNetwork):
    """See KnowledgeEditor. ΔW = scale · sigmoid(g) · (a ∘ ∇W + b); a and b are outer products of a distribution over
    the first axis of the stored weight and any numbers over its second; so a change remains a sum of outer products."""

    def __init__(self, options: KnowledgeEditor, shapes: Mapping[str, Shape], embeddings: Float[Tensor, "v d"]):
        super().__init__()
        self.options, self.shapes = options, dict(shapes)
        self.embedding = nn.Embedding.from_pretrained(embeddings.float().clone(), freeze=False)
        self.lstm = nn.LSTM(embeddings.shape[1], options.hidden, bidirectional=True)
        self.condition = nn.Sequential(nn.Linear(2 * options.hidden, options.condition), nn.Tanh())
        self.conditioners = nn.ModuleList(self._conditioner(2 * (s.inputs + s.outputs) + 1) for s in shapes.values())

    def forward(self, gradients: Gradients) -> dict[str, OuterProducts]:
        condition = self._read(gradients.batch)
        return {
            name: self._change(gradients.factors[name], conditioner(condition), shape)
            for (name, shape), conditioner in zip(self.shapes.items(), self.conditioners, strict=True)
        }

    def rate(self, module: str) -> Float[Tensor, ""]:
        """The change is added as it is."""
        return self.embedding.weight.new_tensor(-1.0)

    def _read(self, batch: Batch) -> Float[Tensor, "n c"]:
        """What the LSTM says of each edit: its last states, forwards and backwards."""
        rows = [ids[real] for ids, real in zip(batch.ids, batch.mask, strict=True)]
        embedded = pack_sequence([self.embedding(ids) for ids in rows], enforce_sorted=False)
        _, (last, _) = self.lstm(embedded)
        return self.condition(torch.cat([last[0], last[1]], -1))

    def _change(self, gradient: OuterProducts, says: Float[Tensor, "n m"], shape: Shape) -> OuterProducts:
        """For one matrix and all edits of the batch: the gradient's rows, scaled, and behind them a row for each b."""
        i, o = shape.inputs, shape.outputs
        first, second = (i, o) if shape.by_input else (o, i)
        free_a, share_a, free_b, share_b, gate = says.split([second, first, second, first, 1], -1)
        size = self.options.scale * gate.sigmoid()
        a, b = (share_a.softmax(-1), size * free_a), (share_b.softmax(-1), size * free_b)
        (in_a, out_a), (in_b, out_b) = (a, b) if shape.by_input else (a[::-1], b[::-1])
        edit = gradient.edit
        return OuterProducts(
            torch.cat([gradient.inputs * in_a[edit], in_b]),
            torch.cat([gradient.outputs * out_a[edit], out_b]),
            torch.cat([edit, torch.arange(len(says), device=edit.device)]),
        )

    def _conditioner(self, width: int) -> nn.Sequential:
        hidden = self.options.hidden
        return nn.Sequential(
            weight_norm(nn.Linear(self.options.condition, hidden)), nn.Tanh(), weight_norm(nn.Linear(hidden, width))
        )
