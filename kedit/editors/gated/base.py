"""What editors that act inside a pass share: a store beside the model, and interventions while it holds something."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import ClassVar

import torch
from torch import Tensor

from kedit.cases import Edit
from kedit.common.options import Layer, ShareBelowOne
from kedit.editors import Editor
from kedit.editors.gated import EntryRow, HasEntries
from kedit.editors.gated.store import Store
from kedit.lm import LM
from kedit.lm.intervention import Change
from kedit.lm.matrices import MatrixPart, matrix_name
from kedit.lm.undo import ATTACHED

Cost = Mapping[str, float | int]


@dataclass(kw_only=True, eq=False)
class Gated(Editor, HasEntries):
    """Store x gate x effect: edits are entries of a store, a gate decides for each prompt whether one of them is read,
    and an open gate changes what a module of one pass puts out. No weight of the model changes.

    `part` of `layer` is where the gate reads; if `layer` is null, the layer at relative `depth`.
    """

    name: ClassVar[str]  # prefix of its tensors in a saved state
    lost: ClassVar[str]  # what a saved model lacks

    part: MatrixPart = "mlp_out"
    layer: Layer | None = None
    depth: ShareBelowOne = 27 / 32

    def gated_layer(self, lm: LM) -> int:
        """The layer where the gate reads."""
        return lm.anatomy.layer(self.depth) if self.layer is None else self.layer

    def module(self, lm: LM) -> str:
        """Where the gate reads."""
        return matrix_name(lm.model, lm.anatomy, self.part, self.gated_layer(lm))

    def edited_parameters(self, lm: LM) -> Sequence[str]:
        return [f"{self.module(lm)}.weight"]

    def saved(self, state: Mapping[str, Tensor | str]) -> dict[str, Tensor]:
        """The store's tensors in a saved state, by their parts."""
        prefix = f"{ATTACHED}{self.name}."
        return {key[len(prefix) :]: v for key, v in state.items() if key.startswith(prefix) and isinstance(v, Tensor)}

    def entries(self, state: Mapping[str, Tensor | str]) -> list[EntryRow]:
        raise NotImplementedError

    def store(self, lm: LM) -> Store:
        return Store(lm, self.name)

    def changes(self, lm: LM) -> Mapping[str, Change]:
        """The interventions, by their modules; equal at each call."""
        raise NotImplementedError

    def learn(self, lm: LM, store: Store, edit: Edit) -> Cost:
        """Put one edit into the store; `steps` and `loss` of it."""
        raise NotImplementedError

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Cost:
        """One after another: where an entry goes depends on those before it."""
        if not edits:
            return {}
        store, costs = self.store(lm), []
        for edit in edits:
            number = store.edits
            costs.append(self.learn(lm, store, edit))
            store.put(edits=torch.tensor(number + 1))
        self.hang(lm)
        return {"steps": sum(int(cost["steps"]) for cost in costs), "loss": mean(cost["loss"] for cost in costs)}

    def hang(self, lm: LM) -> None:
        """From now on, until `lm.restore`, passes go through the gate."""
        for module, change in self.changes(lm).items():
            lm.intervene(module, change, lost=self.lost)

    def load_state(self, lm: LM, state: Mapping[str, Tensor | str]) -> None:
        """The LM has brought the store back."""
        if not self.store(lm).empty:
            self.hang(lm)
