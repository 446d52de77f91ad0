"""Editors that are trained to edit: a network maps an edit's gradients to a change of the matrices, in one step.

gradients (kedit.lm.capture) x network (normalised, mapped) x aggregation (over rows and edits). MEND and KE are yamls.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kedit.cases import Case, Edit
from kedit.common.options import Count, Layers, PathText
from kedit.common.seeding import seeded
from kedit.editors import Editor
from kedit.editors.hypernetwork.networks import NetworkOptions, Sum, UpdateNetwork
from kedit.editors.hypernetwork.objective import Editing, EditLoss, HypernetworkObjective
from kedit.editors.hypernetwork.saved import load_network
from kedit.editors.training.artefact import Trained, TrainingJob, described, given
from kedit.editors.training.examples import counts, fitting, split, training_edits
from kedit.editors.training.trainer import Training
from kedit.lm import LM
from kedit.lm.capture import Positions
from kedit.lm.matrices import Part, add_to_matrices, matrices_of

KIND = "hypernetwork"  # the artefact's name in the cache


@dataclass(kw_only=True, eq=False)
class Hypernetwork(Editor):
    """`network` maps the gradients of an edit's loss, at `positions`, to a change of all matrices of `part` in `layers`
    (null: the `last_layers`); `aggregation` says how rows are put together. Several edits in one call are mapped as if
    each were alone, and their changes added.

    It is trained once on training cases (`training`, `loss`), of which `more_training` may make more, and kept in the
    cache; or `trained` is a folder that a training or `python -m kedit.convert` has written.
    """

    network: NetworkOptions
    loss: EditLoss
    training: Training
    aggregation: Sum
    part: Part = "mlp"
    layers: Layers | None = None
    last_layers: Count = 3
    positions: Positions = "all"
    more_training: Callable[[Sequence[Case]], Sequence[Case]] | None = None
    trained: PathText | None = None
    _learnt: Trained | None = field(default=None, init=False, repr=False)
    _editing: Editing | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.trained is not None:
            self._learnt = given(self.trained)

    @property
    def needs_train(self) -> bool:  # type: ignore[override]
        return self.trained is None

    def edited_parameters(self, lm: LM) -> Sequence[str]:
        return [f"{name}.weight" for name in self.modules(lm)]

    def modules(self, lm: LM) -> list[str]:
        """The matrices that are changed."""
        n = lm.anatomy.n_layers
        layers = self.layers if self.layers is not None else range(max(0, n - self.last_layers), n)
        return matrices_of(lm, self.part, layers)

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        """Learn, once for each model, training data and settings (a model without identity: not kept)."""
        if self.trained is None:
            lm.check_unedited("training a hypernetwork")
            self._learnt = self._job(lm, train).run()
        self._editing = self._loaded(lm)

    def fit_report(self) -> Mapping[str, Any]:
        """What was learnt from, the validation curve, which of its points was kept, seconds; and where it is kept."""
        return self._learnt.report if self._learnt else {}

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        if not edits:
            return {}
        editing = self._editing if self._editing and self._editing.lm is lm else self._loaded(lm)
        total: dict[str, Tensor] = {}
        losses: list[float] = []

        @torch.no_grad()
        def add(now: list[int]) -> list[bool]:
            gradients = editing.gradients([edits[i] for i in now])
            losses.extend(gradients.losses.tolist())
            for name, products in editing.changes(gradients).items():
                total[name] = total[name] + products.matrix() if name in total else products.matrix()
            return [True] * len(now)

        pairs = lm.text.pairs([edit.prompt for edit in edits], [edit.target_new for edit in edits])
        lm.batched([len(pair.ids) for pair in pairs], add)
        add_to_matrices(lm, total)
        return {"steps": 1, "loss": sum(losses) / len(losses)}

    # --- what is learnt -----------------------------------------------------------------------------------------------

    def _loaded(self, lm: LM) -> Editing:
        if self._learnt is None:
            raise RuntimeError("nothing is learnt yet: call fit first")
        modules = self.modules(lm)
        with seeded(0):
            network = self.network.build(lm, modules)
        load_network(network, modules, self._learnt)
        return self._editing_of(lm, modules, network.requires_grad_(False))

    def _editing_of(self, lm: LM, modules: Sequence[str], network: UpdateNetwork) -> Editing:
        return Editing(lm=lm, modules=modules, positions=self.positions, network=network, aggregation=self.aggregation)

    def _job(self, lm: LM, train: Sequence[Case]) -> TrainingJob:
        train = self.more_training(train) if self.more_training and train else train
        edits, modules = fitting(lm, training_edits(train)), self.modules(lm)
        learnt, held_out = split(edits, self.training.validation, self.training.seed)

        def objective() -> HypernetworkObjective:
            editing = self._editing_of(lm, modules, self.network.build(lm, modules))
            return HypernetworkObjective(editing, self.loss, self.training, learnt, held_out)

        parts = {name: described(getattr(self, name)) for name in ("network", "aggregation", "loss")}
        return TrainingJob(
            kind=KIND,
            lm=lm,
            edits=edits,
            training=self.training,
            key={"modules": modules, "positions": self.positions, **parts},
            packages=["hypernetwork"],
            about={"modules": modules, "data": {**counts(edits, train), "held_out": len(held_out)}},
            objective=objective,
            listen=self.on_training,
        )
