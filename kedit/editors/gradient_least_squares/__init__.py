"""UltraEdit (Gu et al. 2025, arXiv 2505.14679): edits in closed form from their own gradients, for lifelong editing.

gradients (kedit.lm.capture) -> running normalisation -> a ridge regression for each matrix. Nothing is trained; the
state is a mean and a deviation for each shape of matrix, whatever the number of edits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kedit.cases import Edit
from kedit.common.options import Count, Layers, ModelPart, Positive, Rate
from kedit.editors import Editor
from kedit.editors.gradient_least_squares.statistics import Merge, RowStatistics
from kedit.lm import LM
from kedit.lm.anatomy import is_matrix
from kedit.lm.capture import Factors
from kedit.lm.matrices import add_to_matrices, widths
from kedit.lm.text import Batch

Rows = dict[str, Factors]  # matrix -> what enters it, and the loss's gradients, a row for each answer token


@dataclass(kw_only=True, eq=False)
class GradientLeastSquares(Editor):
    """`parts` says which matrices change: parts of the model with their layers; null: the MLP's output matrix of the
    `last_layers`. All matrices are changed from the same gradients.

    Edits are read `backward_batch` at a time, longest first, the last batch as short as it is; a batch's loss is the
    mean over its answer tokens. Rows of all matrices of one shape share one statistic (`merge`: see RowStatistics).
    Then V = -lr · ‖ĥ‖² · ĝ for each row, and ΔWᵀ = (HᵀH + ridge·I)⁻¹ Hᵀ V with the rows H as they entered the matrix.
    """

    lr: Rate
    parts: Mapping[ModelPart, Layers] | None = None
    last_layers: Count = 2
    backward_batch: Count = 10
    ridge: Positive = 1.0
    merge: Merge = "exact"
    _statistics: dict[str, RowStatistics] = field(default_factory=dict, init=False, repr=False)

    def edited_parameters(self, lm: LM) -> Sequence[str]:
        return [f"{name}.weight" for name in self.modules(lm)]

    def modules(self, lm: LM) -> list[str]:
        """The matrices that change."""
        n = lm.anatomy.n_layers
        parts = self.parts or {"mlp_out": range(max(0, n - self.last_layers), n)}
        found = [name for part, layers in parts.items() for name in lm.anatomy.parameters(lm.model, part, layers)]
        modules = dict.fromkeys(name.removesuffix(".weight") for name in found if name.endswith(".weight"))
        return [name for name in modules if is_matrix(lm.model.get_submodule(name))]

    def fork(self) -> "GradientLeastSquares":
        other = super().fork()
        assert isinstance(other, GradientLeastSquares)
        return other

    def reset(self) -> None:
        self._statistics = {}

    def state(self) -> dict[str, Tensor | str]:
        """For each shape of matrix three tensors, whatever the number of edits."""
        found: dict[str, Tensor | str] = {}
        for shape, statistics in self._statistics.items():
            found |= statistics.state(shape)
        return found

    def load_state(self, lm: LM, state: Mapping[str, Tensor | str]) -> None:
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        shapes = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
        self._statistics = {shape: RowStatistics.from_state(shape, tensors, lm.device) for shape in shapes}

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        if not edits:
            return {}
        modules = self.modules(lm)
        losses, batches = zip(*(self._rows(lm, modules, some) for some in self._batches(lm, edits)), strict=True)
        statistics = dict(self._statistics)
        for rows in batches:
            for name in modules:
                shape = _shape(lm, name)
                before = statistics.get(shape) or RowStatistics.of_width(sum(widths(lm, name)), lm.device)
                statistics[shape] = before.with_rows(torch.cat(rows[name], -1), self.merge)
        changes = {}
        for name in modules:
            inputs, outputs = (torch.cat([rows[name][i] for rows in batches]).double() for i in (0, 1))
            changes[name] = self.change(inputs, outputs, statistics[_shape(lm, name)]).T
        add_to_matrices(lm, changes)
        self._statistics = statistics
        return {"steps": 1, "loss": sum(losses) / len(edits), "rows": sum(len(rows[modules[0]][0]) for rows in batches)}

    def change(
        self, inputs: Float[Tensor, "r i"], outputs: Float[Tensor, "r o"], statistics: RowStatistics
    ) -> Float[Tensor, "i o"]:
        """ΔWᵀ of one matrix."""
        normalised = statistics.normalised(torch.cat([inputs, outputs], -1))
        h, g = normalised.split([inputs.shape[1], outputs.shape[1]], dim=-1)
        return ridge_solution(inputs, -self.lr * h.square().sum(-1, keepdim=True) * g, self.ridge)

    def _batches(self, lm: LM, edits: Sequence[Edit]) -> list[list[Edit]]:
        """Longest first, as the released code sorts them; the last batch may be short."""
        pairs = lm.text.pairs([edit.prompt for edit in edits], [edit.target_new for edit in edits])
        order = sorted(range(len(edits)), key=lambda i: -len(pairs[i].ids))
        return [
            [edits[i] for i in order[begin : begin + self.backward_batch]]
            for begin in range(0, len(order), self.backward_batch)
        ]

    def _rows(self, lm: LM, modules: Sequence[str], edits: Sequence[Edit]) -> tuple[float, Rows]:
        """One batch's losses (the sum over edits of their means over tokens) and rows, on the model's own device;
        however many passes memory wants, the loss is the mean over all its answer tokens."""
        pairs = lm.text.pairs([edit.prompt for edit in edits], [edit.target_new for edit in edits])
        tokens, losses, parts = sum(len(pair.answer) for pair in pairs), [], []

        def mean(logits: Float[Tensor, "k v"], batch: Batch) -> Float[Tensor, ""]:
            nll = functional.cross_entropy(logits.float(), batch.gold, reduction="none")
            losses.append(float(batch.mean(nll.detach()).sum()))
            return nll.sum() / tokens

        def run(now: list[int]) -> list[bool]:
            parts.append(lm.capture(lm.batch([pairs[i] for i in now]), modules, "answer", mean))
            return [True] * len(now)

        lm.batched([len(pair.ids) for pair in pairs], run)
        joined = {
            name: Factors(*(torch.cat([part[name][i].to(lm.device) for part in parts]) for i in (0, 1)))
            for name in modules
        }
        return sum(losses), joined


def ridge_solution(inputs: Float[Tensor, "r i"], targets: Float[Tensor, "r o"], ridge: float) -> Float[Tensor, "i o"]:
    """(HᵀH + ridge·I)⁻¹ Hᵀ V; for fewer rows than columns as Hᵀ (H Hᵀ + ridge·I)⁻¹ V, which is the same and needs a
    system of r equations only."""
    r, i = inputs.shape
    if r <= i:
        gram = inputs @ inputs.T + ridge * torch.eye(r, dtype=inputs.dtype, device=inputs.device)
        return inputs.T @ torch.linalg.solve(gram, targets)
    gram = inputs.T @ inputs + ridge * torch.eye(i, dtype=inputs.dtype, device=inputs.device)
    return torch.linalg.solve(gram, inputs.T @ targets)


def _shape(lm: LM, module: str) -> str:
    """The name of a matrix's statistic."""
    return "x".join(map(str, widths(lm, module)))
