"""SERAC's counterfactual model: a language model that answers by the fact before the question (arXiv 2206.06520)."""

import json
import logging
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from kedit.cases import Case, Edit
from kedit.common.cache import cached, digest
from kedit.common.errors import InputError
from kedit.common.hub import why_no_model
from kedit.common.options import PathText, Seed
from kedit.common.seeding import seeded
from kedit.editors.finetune.epochs import StandardFineTune
from kedit.editors.incontext.alignment import settings_of
from kedit.lm import LM, load

log = logging.getLogger(__name__)
ABOUT = "about.json"
FOLLOWS = ("generality", "portability")  # kinds of questions whose answers follow from the edit


def sentence(edit: Edit) -> str:
    """An edit as it is stored."""
    return f"{edit.prompt} {edit.target_new}"


def behind(fact: str, prompt: str) -> str:
    """What the counterfactual model reads for a prompt."""
    return f"{fact} {prompt}"


def examples(train: Sequence[Case]) -> Iterator[Edit]:
    """The questions of each training case that its edit answers, behind the edit."""
    for case in train:
        for edit in case.edits:
            fact = sentence(edit)
            yield Edit(behind(fact, edit.prompt), edit.target_new)
            for probe in case.probes:
                if probe.kind in FOLLOWS and probe.answers:
                    yield Edit(behind(fact, probe.prompt), probe.answers[0])


@dataclass(kw_only=True, eq=False)
class Counterfactual:
    """`tuner` trains the model at `path` (null: a copy of the model under test), of the same vocabulary as the model
    under test, on the questions of training cases; once for each model, data and settings. `trained` is the directory
    of a trained one: nothing is learnt then."""

    tuner: StandardFineTune
    path: PathText | None = None
    trained: PathText | None = None
    seed: Seed = 0
    _unkept: TemporaryDirectory[str] | None = field(default=None, init=False, repr=False)
    _home: Path | None = field(default=None, init=False, repr=False)
    _lm: LM | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.tuner.adapter is not None:
            raise InputError(
                "editor.counterfactual.tuner.adapter: the counterfactual model is trained as a whole; leave it null"
            )
        if self.trained is not None:
            self._home = Path(self.trained).expanduser()

    def missing_inputs(self) -> Iterator[str]:
        """A sentence if the second model cannot be had."""
        if self.trained is None and self.path is not None and (why := why_no_model(self.path)):
            yield (
                f"editor.counterfactual.path={self.path}: SERAC's second model cannot be had ({why}); give a directory "
                "with a model of the same vocabulary, or null for a copy of the model under test"
            )

    @property
    def needs_train(self) -> bool:
        return self.trained is None

    @property
    def lm(self) -> LM:
        if self._lm is None:
            raise RuntimeError("nothing is learnt yet: call fit first")
        return self._lm

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        """Raises InputError if there are no training cases, or if the model's vocabulary is another one."""
        if self.trained is None:
            lm.check_unedited("training SERAC's counterfactual model")
            data = list(examples(train))
            if not data:
                raise InputError(
                    "SERAC's counterfactual model learns from training cases and has none; give some with "
                    "dataset.train_path (world: dataset.train_people), or editor.counterfactual.trained=DIR"
                )
            self._home = self._learnt(lm, self._start(lm), data)
        self._lm = load(str(self._home), token_budget=lm.token_budget)

    def fit_report(self) -> dict[str, Any]:
        told = {"kept": None if self._unkept else str(self._home)}
        about = None if self._home is None else self._home / ABOUT
        return told if about is None or not about.is_file() else json.loads(about.read_text(encoding="utf-8")) | told

    def _start(self, lm: LM) -> LM:
        if self.path is None:
            copy: PreTrainedModel = deepcopy(lm.model)  # type: ignore[assignment]
            return LM(copy, lm.text.tokenizer, identity=lm.identity)
        other = load(self.path)
        if other.text.tokenizer.get_vocab() != lm.text.tokenizer.get_vocab():
            raise InputError(
                f"editor.counterfactual.path={self.path}: its vocabulary is not that of the model under test, so their "
                "answers cannot be mixed; give a model with the same tokenizer, or null for a copy"
            )
        return other

    def _learnt(self, lm: LM, other: LM, data: Sequence[Edit]) -> Path:
        if other.identity is None:
            self._unkept = TemporaryDirectory(prefix="kedit-counterfactual-")  # deleted with self
            self._train(other, data, Path(self._unkept.name))
            return Path(self._unkept.name)
        key = {
            "model": other.identity,
            "dtype": str(other.dtype),
            "examples": digest([[one.prompt, one.target_new] for one in data]),
            "tuner": settings_of(self.tuner),
            "seed": self.seed,
            "versions": [torch.__version__, transformers.__version__],
        }
        return cached("counterfactual", key, lambda folder: self._train(other, data, folder))

    def _train(self, other: LM, data: Sequence[Edit], folder: Path) -> None:
        log.info("counterfactual model: %d examples, once for this model and these settings", len(data))
        with seeded(self.seed):
            result = self.tuner.edit(other, data)
        other.save(folder)
        self.tuner.reset()
        (folder / ABOUT).write_text(json.dumps({"examples": len(data), **result}), encoding="utf-8")
