"""Locate-then-edit: ROME, R-ROME, MEMIT, EMMET, PMET and AlphaEdit are yamls over one pipeline.

keys (where a fact stands, kedit.editors.locate.fact_rows) x values (what must come out there) x solver (how a matrix
gives it) x spread (which layer takes which share).
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from statistics import mean
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kedit.cases import Case, Edit
from kedit.common.errors import InputError
from kedit.common.options import Count, Layers, OneOrMore, ShareBelowOne, Text
from kedit.covariance.estimate import Covariance
from kedit.editors import Editor
from kedit.editors.locate.activations import add_to_matrix
from kedit.editors.locate.context_templates import Sampling, given
from kedit.editors.locate.fact_rows import Fact, KeyReader, facts_of
from kedit.editors.locate.solvers import Solver
from kedit.editors.locate.values import Values
from kedit.lm import LM

SHARES = {"even": lambda left: 1 / left, "sqrt": lambda left: left**-0.5}


@dataclass(kw_only=True, eq=False)
class Locate(Editor):
    """Values are found at the last of `layers` (null: the `n_layers` that end at relative `depth`); then layer after
    layer takes a share of what is still missing there: one over the layers left (even), or its root (sqrt: PMET, §3.3).

    `context_templates` are given, or sampled once from the unedited model. `statistics`: of ordinary keys, where the
    solver asks for them.
    """

    needs_subject: ClassVar[bool] = True

    keys: KeyReader
    values: Values
    solver: Solver
    spread: Literal["even", "sqrt"] = "even"
    layers: Layers | None = None
    depth: ShareBelowOne = 0.25
    n_layers: Count = 1
    context_templates: OneOrMore[Text] | None = None
    sampling: Sampling
    statistics: Covariance | None = None

    def __post_init__(self) -> None:
        if self.solver.needs_covariance and self.statistics is None:
            raise InputError(f"editor.solver={type(self.solver).__name__} needs second moments; give editor.statistics")
        if self.context_templates is not None:
            self.context_templates = given(self.context_templates)
        if self.spread not in SHARES:
            raise InputError(f"editor.spread={self.spread}: choose one of {', '.join(SHARES)}")
        several = self.n_layers if self.layers is None else len(self.layers)
        if several > 1 and not self.solver.several_layers:
            option = f"editor.n_layers={several}" if self.layers is None else f"editor.layers={list(self.layers)}"
            raise InputError(f"{option}: {type(self.solver).__name__} changes one layer; give one, or another solver")

    def edited_parameters(self, lm: LM) -> Sequence[str]:
        return lm.anatomy.parameters(lm.model, "mlp_out.weight", self._layers(lm))

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        self.templates = self.sampling(lm) if self.context_templates is None else list(self.context_templates)
        layers = self._layers(lm)
        if self.solver.needs_covariance and self.statistics is not None:
            moments = self.statistics.second_moment(lm, layers)
            self.solver.fit(moments, self.statistics.tokens_read)
        else:
            self.solver.read({layer: lm.anatomy.mlp_width(lm.model, layer) for layer in layers})

    def fit_report(self) -> Mapping[str, Any]:
        return {"context_templates": self.templates, **self.solver.fit_report()}

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        if not edits:
            return {}
        found = facts_of(lm, edits, self.templates, self.keys.occurrence)
        batches = [found] if self.solver.batched else [[fact] for fact in found]
        reports = [self._edit(lm, batch) for batch in batches]
        return {"steps": sum(r["steps"] for r in reports), "loss": mean(r["loss"] for r in reports)}

    def _edit(self, lm: LM, batch: Sequence[Fact]) -> dict[str, Any]:
        found = self.values.find(lm, batch, self._layers(lm)[-1])
        self.write_values(lm, batch, torch.stack([value.value for value in found]).double().T)
        return {"steps": sum(value.steps for value in found), "loss": mean(value.loss for value in found)}

    def write_values(self, lm: LM, batch: Sequence[Fact], target_values: Float[Tensor, "d n"]) -> None:
        """Make these values come out at the last layer, float64."""
        layers = self._layers(lm)
        for i, layer in enumerate(layers):
            [keys] = self.keys.keys(lm, batch, [layer])
            residual = target_values - self.keys.outputs(lm, batch, self.values.sites[0], layers[-1]).to(
                target_values.device
            )
            share = SHARES[self.spread](len(layers) - i)
            add_to_matrix(lm, {layer: self.solver.change(layer, keys, (share * residual).to(keys.prompt_key.device))})
        if self.solver.stateful:
            for layer, keys in zip(layers, self.keys.keys(lm, batch, layers), strict=True):
                self.solver.accumulate(layer, keys)

    def _layers(self, lm: LM) -> Sequence[int]:
        """Ascending."""
        if self.layers is not None:
            return sorted(self.layers)
        last = lm.anatomy.layer(self.depth)
        return range(max(0, last - self.n_layers + 1), last + 1)

    def fork(self) -> "Locate":
        other = copy(self)
        other.solver = copy(self.solver)
        other.reset()
        return other

    def reset(self) -> None:
        self.solver.reset()

    def state(self) -> dict[str, Tensor | str]:
        return dict(self.solver.state())

    def load_state(self, lm: LM, state: Mapping[str, Tensor | str]) -> None:
        self.solver.load_state({name: value for name, value in state.items() if isinstance(value, Tensor)})
