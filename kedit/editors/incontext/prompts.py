"""How recalled edits and a query become the prompt that the model reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from kedit.cases import Case
from kedit.common.errors import InputError
from kedit.common.options import Count, Name, Rule, Text, has_fields
from kedit.editors.incontext.augmentation import qa
from kedit.lm import LM, Route
from kedit.lm.sentence_encoder import MINILM, load


class Prompt:
    """Writes prompts."""

    needs_train: ClassVar[bool] = False

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        """Once, on the unedited model."""

    def compose(self, lm: LM, queries: Sequence[str], facts: Sequence[Sequence[str]]) -> list[str]:
        """A prompt for each query with the edits recalled for it, at least one each, the best first. A query given
        back as it is goes to the model as if nothing had been recalled."""
        raise NotImplementedError

    def write(self, query: str, facts: Sequence[str]) -> str | None:
        """The same of one query, where it takes no model and nothing that `fit` learns; else None."""
        return None


@dataclass(kw_only=True, eq=False)
class UpdatedInformation(Prompt):
    """LTE's prompt, which KEDAS prints in a short form: `template` with {facts} and {query}; several facts are
    numbered, one in a line."""

    template: Annotated[str, has_fields("facts", "query"), Rule("a text with {facts} and {query}")]

    def compose(self, lm: LM, queries: Sequence[str], facts: Sequence[Sequence[str]]) -> list[str]:
        return [self.write(query, known) for query, known in zip(queries, facts, strict=True)]

    def write(self, query: str, facts: Sequence[str]) -> str:
        known = facts[0] if len(facts) == 1 else "\n".join(f"{i}. {fact}" for i, fact in enumerate(facts, 1))
        return self.template.format(facts=known, query=query)


@dataclass(kw_only=True, eq=False)
class Demonstrations(Prompt):
    """IKE's prompt (Zheng et al. 2023, arXiv 2305.12740, §3): the `k` demonstrations nearest to the edit and its query,
    the nearest first, then these; each as `template`, with {fact} and {query}, and ended by `end`.

    Demonstrations are made of training cases: copy (the fact asked as it is), update (asked in other words), retain
    (asked something else, with the old answer).
    """

    k: Count
    template: Annotated[str, has_fields("fact", "query"), Rule("a text with {fact} and {query}")]
    end: str
    encoder: Name = MINILM
    needs_train: ClassVar[bool] = True

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        asked = [self._write(fact, q) + f" {a.strip()}{self.end}" for case in train for fact, q, a in lessons(case)]
        self.texts = list(dict.fromkeys(asked))
        if len(self.texts) < self.k:
            raise InputError(
                f"the training split makes {len(self.texts)} demonstrations, a prompt takes {self.k}; give more with "
                "dataset.train_path (world: dataset.train_people), or fewer with editor.prompt.k"
            )
        self.embed = load(self.encoder)
        self.vectors = self.embed(self.texts)

    def compose(self, lm: LM, queries: Sequence[str], facts: Sequence[Sequence[str]]) -> list[str]:
        asked = [self._write(" ".join(known), query) for query, known in zip(queries, facts, strict=True)]
        if not asked:
            return []
        nearest = (self.embed([text + self.end for text in asked]) @ self.vectors.T).topk(self.k).indices.tolist()
        return ["".join(self.texts[i] for i in places) + text for places, text in zip(nearest, asked, strict=True)]

    def _write(self, fact: str, query: str) -> str:
        return self.template.format(fact=fact, query=query.rstrip())


def lessons(case: Case) -> list[tuple[str, str, str]]:
    """(fact, query, answer) of all that can be made of a case; questions beside the edits' own belong to the first."""
    edit = case.edits[0]
    updated = [(probe.prompt, probe.answers[0]) for probe in case.probes if probe.kind == "generality"]
    retained = [(probe.prompt, probe.answers[0]) for probe in case.probes if probe.kind == "locality"]
    copied = [(qa(other).text, other.prompt, other.target_new) for other in case.edits]
    return [*copied, *((qa(edit).text, query, answer) for query, answer in [*updated, *retained])]


@dataclass(kw_only=True, eq=False)
class Notes(Prompt):
    """EREN's two steps (Chen et al. 2024, arXiv 2403.17431): the model answers from the notes, and may say that they do
    not answer the question; then it is asked without them.

    `reading` has {notes} and {query}; `unanswerable` is what the model says where the notes say nothing.
    """

    reading: Annotated[str, has_fields("notes", "query"), Rule("a text with {notes} and {query}")]
    unanswerable: Text = "unanswerable"
    max_tokens: Count = 20

    def compose(self, lm: LM, queries: Sequence[str], facts: Sequence[Sequence[str]]) -> list[str]:
        notes = [".\n".join(fact.rstrip(" .") for fact in known) + "." for known in facts]
        texts = [self.reading.format(notes=known, query=query) for query, known in zip(queries, notes, strict=True)]
        said = lm.generate([Route(text) for text in texts], self.max_tokens)
        silent = [self.unanswerable == reply.text.strip().lower().rstrip(".") for reply in said]
        return [query if none else text for query, text, none in zip(queries, texts, silent, strict=True)]
