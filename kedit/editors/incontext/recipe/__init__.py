"""RECIPE (Chen et al. 2024, arXiv 2405.03279): each stored edit is a learnt soft prompt, and a learnt sentinel decides
which queries are given one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kedit.cases import Case
from kedit.common.errors import InputError
from kedit.common.options import PathText
from kedit.editors.incontext import Candidate, InContext, routed_by
from kedit.editors.incontext.alignment import Alignment
from kedit.editors.incontext.augmentation import Augmentation
from kedit.editors.incontext.edit_memory import EditMemory
from kedit.editors.incontext.filter import Filter
from kedit.editors.incontext.prompts import Prompt
from kedit.editors.incontext.recipe.network import RecipeNetwork, RecipeOptions
from kedit.editors.incontext.recipe.objective import RecipeLoss, RecipeObjective
from kedit.editors.training.artefact import Trained, TrainingJob, described, given
from kedit.editors.training.examples import counts, fitting, split, training_edits
from kedit.editors.training.trainer import Training
from kedit.lm import LM, Route
from kedit.lm.text_encoder import TextEncoder

KIND = "recipe"  # the artefact's name in the cache


@dataclass(kw_only=True, eq=False)
class PromptMemory(EditMemory):
    """Stored edits and queries as RECIPE's network represents them; `encoder` is what the network reads them with."""

    learnt: Callable[[], RecipeNetwork] | None = field(default=None, init=False, repr=False)  # loads the network
    _network: RecipeNetwork | None = field(default=None, init=False, repr=False)
    _reader: TextEncoder | None = field(default=None, init=False, repr=False)
    _prompts: dict[tuple[int, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

    def load(self) -> None:
        self._reader = self._reader or TextEncoder(self.encoder)

    @property
    def reader(self) -> TextEncoder:
        self.load()
        assert self._reader is not None
        return self._reader

    def use(self, network: RecipeNetwork) -> None:
        """From now on this network represents what is stored and asked."""
        self._network = network.cpu().eval().requires_grad_(False)
        self._sentinel = network.sentinel()
        self._encode = lambda texts: network.features(texts)

    @property
    def network(self) -> RecipeNetwork:
        if self._network is None and self.learnt is not None:
            self.use(self.learnt())
        if self._network is None:
            raise RuntimeError("nothing is learnt yet: call fit first")
        return self._network

    def represent_stored(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        self._prompts.clear()
        return self.network.knowledge(self.embed(texts))

    def represent_queries(self, queries: Sequence[str]) -> Float[Tensor, "n d"]:
        return self.network.query(self.embed(queries))

    def margin(self, query: str, score: float) -> float:
        """How far the score of a stored edit is above that of the sentinel; not above 0: no edit is used."""
        [own] = self.represent_queries([query])
        return score - float(own @ self._sentinel)

    def soft_prompt(self, places: tuple[int, ...]) -> Float[Tensor, "m d"]:
        """Keys of the stored edits, one after another; the same tensor until something is stored."""
        if places not in self._prompts:
            each = [self.network.prompts(self.index.vectors[place : place + 1])[0] for place in places]
            self._prompts[places] = torch.cat(each)
        return self._prompts[places]

    def emptied(self) -> "PromptMemory":
        other = super().emptied()
        assert isinstance(other, PromptMemory)
        other._prompts = {}  # the first edit of each is another one
        return other

    def clear(self) -> None:
        super().clear()
        self._prompts.clear()


@dataclass(kw_only=True, eq=False)
class SoftPrompt(Prompt):
    """What stands before the prompt is no text."""


@dataclass(kw_only=True, eq=False)
class Recipe(InContext):
    """The soft prompt of the stored edit that scores highest stands before a query's first token, if it scores above
    the sentinel. Network and sentinel are trained once on training cases (`training`, `loss`) and kept in the cache; or
    `trained` is a folder that a training has written. A query is its prompt alone, also in training."""

    memory: PromptMemory
    network: RecipeOptions
    loss: RecipeLoss
    training: Training
    trained: PathText | None = None
    prompt: Prompt = field(default_factory=SoftPrompt, init=False)
    augmentation: Augmentation | None = field(default=None, init=False)
    filter: Filter | None = field(default=None, init=False)
    alignment: Alignment | None = field(default=None, init=False)
    _learnt: Trained | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory.normalize:
            raise InputError("editor.memory.normalize=true: learnt scores are inner products; set it to false")
        if self.trained is not None:
            self._learnt = given(self.trained)
        self.memory.learnt = self._loaded

    @property
    def needs_train(self) -> bool:  # type: ignore[override]
        return self.trained is None

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        """Learn, once for each model, encoder, training data and settings (a model without identity: not kept)."""
        if self.trained is None:
            lm.check_unedited("training RECIPE's prompts")
            self._learnt = self._job(lm, train).run()
        self.memory.use(self._loaded(_width(lm)))

    def _job(self, lm: LM, train: Sequence[Case]) -> TrainingJob:
        train = self.more_training(train) if self.more_training and train else train
        edits = fitting(lm, training_edits(train))
        learnt, held_out = split(edits, self.training.validation, self.training.seed)

        def objective() -> RecipeObjective:
            network = self.network.build(TextEncoder(self.memory.encoder), _width(lm))
            return RecipeObjective(lm, network.to(lm.device), self.loss, self.training, learnt, held_out)

        data = {**counts(edits, train), "held_out": len(held_out)}
        parts = {name: described(getattr(self, name)) for name in ("network", "loss")}
        return TrainingJob(
            kind=KIND,
            lm=lm,
            edits=edits,
            training=self.training,
            key={"encoder": self.memory.reader.identity, **parts},
            packages=["incontext/recipe"],
            about={"model_width": _width(lm), "encoder": self.memory.encoder, "data": data},
            objective=objective,
            listen=self.on_training,
        )

    def _loaded(self, model_width: int | None = None) -> RecipeNetwork:
        """What was learnt, for a model of this width (None: whichever it was)."""
        if self._learnt is None:
            raise RuntimeError("nothing is learnt yet: call fit first")
        about = self._learnt.about
        if about.get("encoder") != self.memory.encoder:
            raise InputError(
                f"{self._learnt.folder}: trained with the encoder {about.get('encoder')}, but editor.memory.encoder is "
                f"{self.memory.encoder}; give the same"
            )
        network = self.network.build(self.memory.reader, model_width or about["model_width"])
        self._learnt.fill(network)
        return network

    def fit_report(self) -> Mapping[str, Any]:
        """What was learnt from, the validation curve, which of its points was kept, seconds; and where it is kept."""
        return self._learnt.report if self._learnt else {}

    @torch.no_grad()
    def retrieve(self, queries: Sequence[str]) -> list[list[Candidate]]:
        """The nearest stored edits, and whether they beat the sentinel; the probability is that of the two alone."""
        found = self.memory.nearest(queries)
        margins = [[self.memory.margin(q, hit.cosine) for hit in hits] for q, hits in zip(queries, found, strict=True)]
        return [
            [
                Candidate(hit, float(torch.tensor(margin).sigmoid()), margin > 0)
                for hit, margin in zip(hits, row, strict=True)
            ]
            for hits, row in zip(found, margins, strict=True)
        ]

    @torch.no_grad()
    def _route(self, lm: LM, prompts: Sequence[str], keys: Sequence[str]) -> list[Route]:
        retrieved = self.retrieve(keys)
        return [self._prefixed(prompt, found) for prompt, found in zip(prompts, retrieved, strict=True)]

    def _prefixed(self, prompt: str, retrieved: Sequence[Candidate]) -> Route:
        used = self.in_context(retrieved)
        places = tuple(one.hit.entry.edit for one in used)  # each edit is stored in one wording
        info = routed_by(retrieved, [one.hit.entry.text for one in used], None)
        return Route(prompt, prefix=self.memory.soft_prompt(places) if places else None, info=info)


def _width(lm: LM) -> int:
    """Mean and spread of the input embeddings."""
    return int(lm.parameter(f"{lm.embedding_module}.weight").shape[1])
