"""What is trained, as files: weights as safetensors, and what they are for as JSON. Trained once for what it depends
on, by all processes that accelerate has launched, after a kill from its last checkpoint on; or given by path."""

import ast
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from kedit.common.cache import cache_folder, cached, digest
from kedit.common.errors import InputError
from kedit.common.seeding import seeded
from kedit.editors.training.examples import TrainingEdit
from kedit.editors.training.shipped import shipped
from kedit.editors.training.trainer import Listener, Objective, Trainer, Training

if TYPE_CHECKING:
    from kedit.lm.model import LM

WEIGHTS, ABOUT = "network.safetensors", "about.json"
UNLEARNT = ("at_once", "checkpoint_s")  # settings that change nothing that is learnt
Train = Callable[[Path, Path], None]  # (folder for what is learnt, folder for what a continued training needs)


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training has left in `folder`."""

    folder: Path
    unkept: TemporaryDirectory[str] | None = None  # the folder is deleted with this

    @property
    def about(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / ABOUT).read_text(encoding="utf-8"))
        return found

    @property
    def report(self) -> dict[str, Any]:
        """About what was learnt, and where it is kept."""
        return self.about | {"folder": None if self.unkept else str(self.folder)}

    def fill(self, network: nn.Module) -> None:
        """Put what was learnt into a network. Raises InputError if it was another network."""
        file = self.folder / WEIGHTS
        try:
            values = load_file(file)
        except SafetensorError as error:
            raise InputError(f"{file}: no safetensors file ({error}); train or convert it again") from error
        wanted = {name: value.shape for name, value in network.state_dict().items()}
        wrong = [name for name in {**wanted, **values} if name not in values or wanted.get(name) != values[name].shape]
        if wrong:
            given = tuple(values[wrong[0]].shape) if wrong[0] in values else "none"
            here = tuple(wanted[wrong[0]]) if wrong[0] in wanted else "none"
            raise InputError(
                f"{file}: {wrong[0]} is {given}, but editor.network asks for {here}; give the network the numbers that "
                "it was trained with"
            )
        network.load_state_dict(values)


def given(folder: str) -> Trained:
    """What editor.trained names. Raises InputError if nothing trained is there."""
    found = Trained(Path(folder).expanduser())
    missing = [name for name in (WEIGHTS, ABOUT) if not (found.folder / name).is_file()]
    if missing:
        raise InputError(
            f"editor.trained={folder}: no {' and no '.join(missing)} there; give a folder that a training or python -m "
            "kedit.convert has written"
        )
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingJob:
    """A training that is wanted: a `kind` of artefact for `lm`, which depends on `edits`, `training` and `key`.
    `packages` of kedit.editors have the code that it depends on; `about` is kept beside the weights."""

    kind: str
    lm: "LM"
    edits: Sequence[TrainingEdit]
    training: Training
    key: Mapping[str, Any]
    packages: Sequence[str]
    about: Mapping[str, Any]
    objective: Callable[[], Objective]  # called with the training's seed set
    listen: Listener | None = None  # see Trainer

    def run(self) -> Trained:
        """Trains if this was not trained before; for a model without identity it is not kept."""
        if self.lm.identity is None:
            unkept = TemporaryDirectory(prefix=f"kedit-{self.kind}-")
            self._train(Path(unkept.name), Path(unkept.name) / "scratch", "")
            return Trained(Path(unkept.name), unkept)
        settings = {name: value for name, value in asdict(self.training).items() if name not in UNLEARNT}
        key = {
            "model": self.lm.identity,
            "dtype": str(self.lm.dtype),
            "training": settings,
            "edits": digest([asdict(edit) for edit in self.edits]),
            "code": code_of(*self.packages),
            "versions": [torch.__version__, transformers.__version__],
            **self.key,
        }

        def train(folder: Path, scratch: Path) -> None:
            self._train(folder, scratch, digest(key))

        return Trained(trained_once(self.kind, key, train, cpu=self._cpu))

    @property
    def _cpu(self) -> bool:
        return self.lm.device.type == "cpu"

    def _train(self, folder: Path, scratch: Path, of: str) -> None:
        started = time.perf_counter()
        with seeded(self.training.seed):
            objective = self.objective()
            report = Trainer(objective, self.training, scratch, of, cpu=self._cpu, listen=self.listen).run(self.kind)
        folder.mkdir(exist_ok=True)
        module = objective.module
        save_file({name: value.contiguous() for name, value in module.state_dict().items()}, folder / WEIGHTS)
        size = {"parameters": sum(p.numel() for p in module.parameters())}
        about = {**self.about, **size, **report, "seconds": round(time.perf_counter() - started, 1)}
        (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def described(part: Any) -> dict[str, Any]:
    """A part of an editor in an artefact's key."""
    fields = asdict(part) if is_dataclass(part) and not isinstance(part, type) else {}
    return {"is": type(part).__name__, **fields}


def code_of(*packages: str) -> str:
    """A hash of all code of these packages of kedit.editors and of this one: other code may learn something else.
    Comments, docstrings and layout are no part of it."""
    here = Path(__file__).parent
    files = [file for name in (here.name, *packages) for file in sorted((here.parent / name).glob("*.py"))]
    return digest([_without_words(ast.parse(file.read_text(encoding="utf-8"))) for file in files])


def _without_words(code: ast.Module) -> str:
    for node in ast.walk(code):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(code)


def trained_once(kind: str, key: Mapping[str, Any], train: Train, *, cpu: bool) -> Path:
    """The folder that `key` (all that what is learnt depends on) determines: the package's own, if it comes with it, or
    one in the cache, which `train` fills if there is none."""
    if (ready := shipped(kind, key)) is not None:
        return ready
    scratch = cache_folder() / kind / f".partial-{digest(key)}"  # a killed training continues there
    processes = PartialState(cpu=cpu)
    started = []

    def build(folder: Path) -> None:
        started.extend(broadcast_object_list([True]))
        train(folder, scratch)
        shutil.rmtree(scratch, ignore_errors=True)

    if processes.is_main_process:
        cached(kind, key, build)
        if not started:
            broadcast_object_list([False])
    elif broadcast_object_list([None])[0]:  # the main process has the lock: the others train with it, and no more
        with TemporaryDirectory() as folder:
            train(Path(folder), scratch)
    processes.wait_for_everyone()
    return cached(kind, key, build)
