"""Alignment (LTE, arXiv 2402.11905 §3.1; KEDAS, "Alignment"): the model learns once to answer by facts in its prompt,
where they matter, and as before where they do not. Learnt before the first edit, kept, and put into the model when
edits are made."""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
import transformers
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kedit.cases import Case, Edit
from kedit.common.cache import digest
from kedit.common.errors import InputError, first_line
from kedit.common.options import Count, PathText, Seed
from kedit.common.seeding import seeded
from kedit.editors.finetune.epochs import StandardFineTune
from kedit.editors.incontext.alignment_examples import Conversations
from kedit.editors.incontext.prompts import UpdatedInformation
from kedit.editors.training.artefact import trained_once
from kedit.lm import LM
from kedit.losses import Loss

log = logging.getLogger(__name__)

KIND = "alignment"  # the artefact's name in the cache
FULL, ABOUT = "model.safetensors", "about.json"
NOT_LEARNT = ("checkpoint_s", "gradient_checkpointing")  # settings that change no weight


@dataclass(kw_only=True, eq=False)
class Alignment:
    """`tuner` trains on `conversations`, whose facts `prompt` writes down: an adapter, or the model's own parameters.

    An answer is followed by `end` and the tokenizer's end-of-text token, so that a free answer stops. `chat`: prompts
    are user turns of the tokenizer's chat template, where it has one. Conversations of more than `max_tokens` tokens
    are left out and counted. `trained` is a directory with an adapter that peft has written, or with the parameters
    of a full alignment (model.safetensors): nothing is trained then.
    """

    conversations: Conversations
    prompt: UpdatedInformation
    tuner: StandardFineTune
    max_tokens: Count
    end: str = ""
    chat: bool = True
    seed: Seed = 0
    trained: PathText | None = None
    _home: Path | None = field(default=None, init=False, repr=False)
    _unkept: TemporaryDirectory[str] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.tuner.adapter and self.tuner.adapter.merge:
            raise InputError(
                "editor.alignment.tuner.adapter.merge=true leaves no adapter to keep; set it to false, or align all "
                "parameters with editor=lte_full"
            )
        if self.trained is not None:
            self._home = _checked(Path(self.trained).expanduser(), self.name)

    def missing_inputs(self) -> Iterator[str]:
        """A sentence about each file that the conversations need and do not find."""
        if self.trained is None:
            yield from self.conversations.missing_inputs()

    @property
    def needs_train(self) -> bool:
        return self.trained is None and self.conversations.needs_train

    @property
    def name(self) -> str | None:
        """What a route calls it; None where the model's own parameters are aligned, so that every prompt meets them."""
        return "aligned" if self.tuner.adapter else None

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        """Learn, once for each model, data and settings (a model without identity: not kept). Leaves `lm` pristine."""
        if self.trained is not None:
            return
        lm.check_unedited("alignment")
        spoken, dropped = self._fitting(lm, self.conversations.build(train, self.prompt))
        data = [conversation for kind in spoken.values() for conversation in kind]
        if not data:
            raise InputError(
                f"none of {sum(dropped.values())} conversations fits editor.alignment.max_tokens={self.max_tokens}; "
                "raise it, or give other training cases"
            )
        about = {"conversations": {kind: len(some) for kind, some in spoken.items()}, "dropped": dropped}
        if lm.identity is None:
            self._unkept = TemporaryDirectory(prefix="kedit-alignment-")  # deleted with self
            self._home = Path(self._unkept.name)
            self._train(lm, data, about, self._home)
        else:
            self._home = self._built(lm, data, about)

    def attach(self, lm: LM) -> None:
        """Put it into the model, until `lm.restore`. An adapter works where a route names it, and nowhere else."""
        if self.name:
            lm.adapt(self.name, self._learnt)
            return
        try:
            values = load_file(self._learnt / FULL)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{self._learnt / FULL}: not a safetensors file ({first_line(error)}); give the folder of a full "
                "alignment"
            ) from error
        shapes = {name: parameter.shape for name, parameter in lm.model.named_parameters()}
        wrong = [name for name, value in values.items() if shapes.get(name) != value.shape]
        if wrong:
            raise InputError(
                f"{self._learnt / FULL}: the model has no parameter {wrong[0]} of that shape; give its own"
            )
        with torch.no_grad():
            for parameter, value in zip(lm.track(list(values)), values.values(), strict=True):
                parameter.copy_(value)

    def fit_report(self) -> dict[str, Any]:
        """Conversations by kind, those left out, steps, the last epoch's loss, seconds; and where it is kept."""
        where = {"kept": None if self._unkept else str(self._learnt)}
        return (
            where
            if self.trained is not None
            else json.loads((self._learnt / ABOUT).read_text(encoding="utf-8")) | where
        )

    @property
    def _learnt(self) -> Path:
        if self._home is None:
            raise RuntimeError("nothing is learnt yet: call fit first")
        return self._home

    # --- what is learnt ----------------------------------------------------------------------------------------------

    def _fitting(self, lm: LM, spoken: Mapping[str, Sequence[Edit]]) -> tuple[dict[str, list[Edit]], dict[str, int]]:
        """The examples in the form that the model reads; those that are too long are left out and counted."""
        most, kept, dropped = min(self.max_tokens, lm.context), {}, {}
        for kind, conversations in spoken.items():
            ready = [self._closed(lm, conversation) for conversation in conversations]
            pairs = lm.text.pairs([talk.prompt for talk in ready], [talk.target_new for talk in ready])
            kept[kind] = [talk for talk, pair in zip(ready, pairs, strict=True) if len(pair.ids) <= most]
            dropped[kind] = len(ready) - len(kept[kind])
        return kept, {kind: count for kind, count in dropped.items() if count}

    def _closed(self, lm: LM, conversation: Edit) -> Edit:
        asked = lm.text.chat(conversation.prompt) if self.chat and lm.text.chats else conversation.prompt
        return Edit(asked, conversation.target_new.strip() + self.end + lm.text.closing)

    # --- learning it -------------------------------------------------------------------------------------------------

    def _built(self, lm: LM, data: Sequence[Edit], about: Mapping[str, Any]) -> Path:
        key = {
            "model": lm.identity,
            "dtype": str(lm.dtype),
            "conversations": digest([[talk.prompt, talk.target_new] for talk in data]),
            "tuner": settings_of(self.tuner),
            "seed": self.seed,
            "versions": [torch.__version__, transformers.__version__, peft.__version__],
        }

        def train(folder: Path, scratch: Path) -> None:
            self.tuner.scratch = scratch
            self._train(lm, data, about, folder)

        return trained_once(KIND, key, train, cpu=lm.device.type == "cpu")

    def _train(self, lm: LM, data: Sequence[Edit], about: Mapping[str, Any], folder: Path) -> None:
        log.info("alignment: %d conversations, once for this model and these settings", len(data))
        began = time.perf_counter()
        with seeded(self.seed):
            try:
                result = self.tuner.edit(lm, data)
                if self.tuner.adapter:
                    self.tuner.adapter.save(folder)
                else:
                    save_file({name: value.contiguous() for name, value in lm.state().items()}, folder / FULL)
            finally:
                lm.restore()
                self.tuner.reset()
        seconds = round(time.perf_counter() - began, 1)
        (folder / ABOUT).write_text(json.dumps({**about, **result, "seconds": seconds}), encoding="utf-8")


def _checked(folder: Path, adapter: str | None) -> Path:
    needed = [CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME] if adapter else [FULL]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        what = "an adapter as peft writes one" if adapter else "a full alignment"
        raise InputError(
            f"editor.alignment.trained={folder}: no {' and no '.join(missing)} there; give the directory of {what}"
        )
    return folder


def settings_of(value: Any) -> Any:
    """All that a tuner's result depends on, JSON-able."""
    if is_dataclass(value) or isinstance(value, Loss):
        names = [f.name for f in fields(value) if f.init] if is_dataclass(value) else list(vars(value))
        parts = {name: settings_of(getattr(value, name)) for name in names if name not in NOT_LEARNT}
        return {"is": type(value).__name__, **parts}
    if isinstance(value, Mapping):
        return {name: settings_of(part) for name, part in value.items()}
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
