"""What is trained beside an edit: the same fact behind other words, and facts that must stay as they are.

Standard fine-tuning (Gangadhar and Stratos 2024, §4) calls them paraphrases, random facts and similar facts. An example
is an Edit again: a prompt and what must follow it.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kedit.cases import Case, Edit
from kedit.common.errors import InputError
from kedit.common.options import Count, Name, PathText, Seed, Share
from kedit.covariance.corpora import NAMED, texts
from kedit.editors import Editor
from kedit.lm import LM


class Examples:
    """A source of examples. `of` gives equally many for every edit, and always the same for the same edit."""

    needs_train: ClassVar[bool] = False

    def missing_inputs(self) -> Iterator[str]:
        """A sentence about each file and model that `fit` would not find; nothing is loaded."""
        yield from ()

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        """Once, on the unedited model."""

    def of(self, edit: Edit) -> list[Edit]:
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class WithExamples(Editor):
    """An editor to which each edit brings examples."""

    examples: Mapping[str, Examples] = field(default_factory=dict)

    @property
    def needs_train(self) -> bool:  # type: ignore[override]
        return any(part.needs_train for part in self.examples.values())

    def missing_inputs(self) -> Iterator[str]:
        for part in self.examples.values():
            yield from part.missing_inputs()

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        for part in self.examples.values():
            part.fit(lm, train)

    def examples_of(self, edit: Edit) -> list[Edit]:
        return [fact for part in self.examples.values() for fact in part.of(edit)]


@dataclass(kw_only=True, eq=False)
class Paraphrases(Examples):
    """The edit behind `n` sentences that the unedited model writes without a prompt.

    The same ones serve every edit. A third has about 5 tokens, the others about 10, sampled with top-k 5, each ended by
    ". " (the released prefixes of the paper are of this kind). The first `n` of `prefixes` are taken instead.
    """

    n: Count = 15
    prefixes: Sequence[str] | None = None

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        self.said = list(self.prefixes[: self.n]) if self.prefixes is not None else self._sampled(lm)

    def _sampled(self, lm: LM) -> list[str]:
        lm.check_unedited("sampling the sentences before an edit")
        lengths = [5] * (self.n // 3) + [10] * (self.n - self.n // 3)
        seeds = [random.randrange(2**31) for _ in lengths]
        try:
            opening = lm.text.opening
        except InputError as error:
            raise InputError(f"{error}; give the prefixes with editor.examples.<name>.prefixes") from error
        texts = lm.generate([opening] * self.n, lengths, top_k=5, seeds=seeds, stop=False)
        return [" ".join(text.text.replace("{", "").replace("}", "").split()).rstrip(" .") + ". " for text in texts]

    def of(self, edit: Edit) -> list[Edit]:
        return [replace(edit, prompt=prefix + edit.prompt) for prefix in self.said]


@dataclass(kw_only=True, eq=False)
class RandomFacts(Examples):
    """`n` facts of the training split with their true answers (the first `max_words` of them), drawn for each edit."""

    n: Count = 20
    seed: Seed = 0
    max_words: Count | None = None
    needs_train: ClassVar[bool] = True

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        self.known = known_facts(train, self.n, self.max_words)

    def of(self, edit: Edit) -> list[Edit]:
        return random.Random(f"{self.seed}/{edit.prompt}/{edit.target_new}").sample(self.known, self.n)


@dataclass(kw_only=True, eq=False)
class SimilarFacts(Examples):
    """The `n` facts of the training split whose prompts are nearest to the edit's, by cosine of sentence embeddings;
    of their answers the first `max_words`."""

    n: Count = 15
    max_words: Count | None = None
    encoder: Name = "sentence-transformers/all-MiniLM-L6-v2"
    needs_train: ClassVar[bool] = True
    _near: dict[str, list[Edit]] = field(default_factory=dict, init=False, repr=False)

    def missing_inputs(self) -> Iterator[str]:
        from kedit.lm.sentence_encoder import missing_encoder

        yield from missing_encoder(self.encoder, "editor.examples.<name>.encoder")

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        from kedit.lm.sentence_encoder import load

        self.known = known_facts(train, self.n, self.max_words)
        self.embed = load(self.encoder)
        self.vectors = self.embed([fact.prompt for fact in self.known])

    def of(self, edit: Edit) -> list[Edit]:
        if edit.prompt not in self._near:
            [vector] = self.embed([edit.prompt])
            nearest = (self.vectors @ vector).topk(self.n).indices.tolist()
            self._near[edit.prompt] = [self.known[i] for i in nearest]
        return self._near[edit.prompt]


def known_facts(train: Sequence[Case], n: int, max_words: int | None = None) -> list[Edit]:
    """The training cases' facts with the first `max_words` of their true answers, each once. Raises InputError if there
    are fewer than `n`.

    The true answer is the old one. A file that states no old answer at all has true edits (ZsRE edited to its answers,
    WikiData_recent, WikiBigEdit): there it is the new answer. If other records of the file state one, the new answer is
    counterfactual and the true one unknown: such a record is left out.
    """
    stating_old = {_file(case) for case in train if any(edit.target_old for edit in case.edits)}
    known = [
        (edit, edit.target_old or edit.target_new)
        for case in train
        for edit in case.edits
        if edit.target_old or _file(case) not in stating_old
    ]
    facts = list(
        {
            edit.prompt: replace(edit, target_new=_first_words(answer, max_words), target_old=None)
            for edit, answer in known
        }.values()
    )
    if len(facts) < n:
        raise InputError(
            f"the training split has {len(facts)} facts with a known answer, {n} are trained with each edit; "
            "give more with dataset.train_path (world: dataset.train_people), or fewer with editor.examples.<name>.n"
        )
    return facts


def _first_words(text: str, most: int | None) -> str:
    words = text.split()
    return text if most is None or len(words) <= most else " ".join(words[:most])


def _file(case: Case) -> str:
    """Which file, or which world, the case comes from."""
    return case.id.rpartition("-")[0]


@dataclass(kw_only=True, eq=False)
class Texts:
    """Ordinary text trained beside the facts, so that the model goes on writing it: (1 - gamma) · facts + gamma · text.

    Standard fine-tuning §5.3: `per_edit` texts of `source` (see kedit.covariance.corpora) for each edit, cut to
    `max_tokens`.
    """

    source: PathText
    gamma: Share = 0.1
    per_edit: Count = 3
    max_tokens: Count = 256

    def __post_init__(self) -> None:
        if self.source not in NAMED:
            texts(self.source)  # raises InputError where it is no file of texts

    def fit(self) -> None:
        """Raises InputError where the source cannot be had."""
        texts(self.source)

    def added(self, loss: Float[Tensor, ""], lm: LM, n_edits: float) -> Float[Tensor, ""]:
        """`loss`, of a batch that holds the facts of `n_edits`, with the language-modelling loss of random texts."""
        corpus = texts(self.source)
        chosen = [corpus[random.randrange(len(corpus))] for _ in range(max(1, round(n_edits * self.per_edit)))]
        batch = lm.encode_texts(chosen, self.max_tokens)
        return (1 - self.gamma) * loss + self.gamma * functional.cross_entropy(lm.answer_logits(batch), batch.gold)
