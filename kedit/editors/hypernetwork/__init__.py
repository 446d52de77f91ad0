"""Editors that are trained to edit: a network maps an edit's gradients to a change of the matrices, in one step.

gradients (kedit.lm.capture) x network (normalised, mapped) x aggregation (over rows and edits). MEND and KE are yamls.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from kedit.cases import Case, Edit
from kedit.common.cache import digest
from kedit.common.errors import InputError
from kedit.common.options import Count, Layers, PathText
from kedit.common.seeding import seeded
from kedit.editors import Editor
from kedit.editors.hypernetwork.networks import NetworkOptions, Sum, UpdateNetwork
from kedit.editors.hypernetwork.objective import Editing, EditLoss, HypernetworkObjective
from kedit.editors.hypernetwork.saved import ABOUT, WEIGHTS, load_network
from kedit.editors.training.artefact import code_of, trained_once
from kedit.editors.training.examples import TrainingEdit, counts, fitting, split, training_edits
from kedit.editors.training.trainer import Trainer, Training
from kedit.lm import LM
from kedit.lm.capture import Positions
from kedit.lm.matrices import Part, add_to_matrices, matrices_of

KIND = "hypernetwork"  # of artefact
UNLEARNT = ("at_once", "checkpoint_s")  # settings that change nothing that is learnt


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
    _home: Path | None = field(default=None, init=False, repr=False)
    _unkept: TemporaryDirectory[str] | None = field(default=None, init=False, repr=False)
    _editing: Editing | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.trained is not None:
            self._home = Path(self.trained).expanduser()
            missing = [name for name in (WEIGHTS, ABOUT) if not (self._home / name).is_file()]
            if missing:
                raise InputError(
                    f"editor.trained={self.trained}: no {' and no '.join(missing)} there; give a folder that a "
                    "training or python -m kedit.convert has written"
                )

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
            train = self.more_training(train) if self.more_training and train else train
            edits = fitting(lm, training_edits(train))
            if lm.identity is None:
                self._unkept = TemporaryDirectory(prefix="kedit-hypernetwork-")  # deleted with self
                self._home = Path(self._unkept.name)
                self._train(lm, edits, counts(edits, train), "", self._home, self._home / "scratch")
            else:
                self._home = self._built(lm, edits, counts(edits, train))
        self._editing = self._loaded(lm)

    def fit_report(self) -> Mapping[str, Any]:
        """What was learnt from, the validation curve, which of its points was kept, seconds; and where it is kept."""
        return json.loads((self._learnt / ABOUT).read_text()) | {"folder": None if self._unkept else str(self._learnt)}

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

    @property
    def _learnt(self) -> Path:
        if self._home is None:
            raise RuntimeError("nothing is learnt yet: call fit first")
        return self._home

    def _loaded(self, lm: LM) -> Editing:
        modules = self.modules(lm)
        with seeded(0):
            network = self.network.build(lm, modules)
        load_network(network, modules, self._learnt)
        return self._editing_of(lm, modules, network.requires_grad_(False))

    def _editing_of(self, lm: LM, modules: Sequence[str], network: UpdateNetwork) -> Editing:
        return Editing(lm=lm, modules=modules, positions=self.positions, network=network, aggregation=self.aggregation)

    def _built(self, lm: LM, edits: Sequence[TrainingEdit], data: Mapping[str, int]) -> Path:
        training = {name: value for name, value in asdict(self.training).items() if name not in UNLEARNT}
        key = {
            "model": lm.identity,
            "dtype": str(lm.dtype),
            "modules": self.modules(lm),
            "positions": self.positions,
            "network": _described(self.network),
            "aggregation": _described(self.aggregation),
            "loss": _described(self.loss),
            "training": training,
            "edits": digest([asdict(edit) for edit in edits]),
            "code": code_of(Path(__file__).parent.name),
            "versions": [torch.__version__, transformers.__version__],
        }

        def train(folder: Path, scratch: Path) -> None:
            self._train(lm, edits, data, digest(key), folder, scratch)

        return trained_once(KIND, key, train, cpu=lm.device.type == "cpu")

    def _train(
        self, lm: LM, edits: Sequence[TrainingEdit], data: Mapping[str, int], of: str, folder: Path, scratch: Path
    ) -> None:
        started, modules = time.perf_counter(), self.modules(lm)
        learnt, held_out = split(edits, self.training.validation, self.training.seed)
        with seeded(self.training.seed):
            network = self.network.build(lm, modules)
            editing = self._editing_of(lm, modules, network)
            objective = HypernetworkObjective(editing, self.loss, self.training, learnt, held_out)
            trainer = Trainer(objective, self.training, scratch, of, cpu=lm.device.type == "cpu")
            report = trainer.run("hypernetwork")
        folder.mkdir(exist_ok=True)
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS)
        size = {"parameters": sum(p.numel() for p in network.parameters())}
        about = {"modules": modules, "data": {**data, "held_out": len(held_out)}, **size, **report}
        (folder / ABOUT).write_text(json.dumps(about | {"seconds": round(time.perf_counter() - started, 1)}))


def _described(part: Any) -> Any:
    fields = asdict(part) if is_dataclass(part) and not isinstance(part, type) else {}
    return {"is": type(part).__name__, **fields}
