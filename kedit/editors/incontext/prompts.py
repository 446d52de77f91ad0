"""How recalled edits and a query become the prompt that the model reads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from kedit.cases import Case
from kedit.common.options import Count, Rule, Text, has_fields
from kedit.lm import LM, Route


class Prompt:
    """Writes prompts."""

    needs_train: ClassVar[bool] = False
    shows_edits: ClassVar[bool] = True  # does what it writes hold the facts?

    def missing_inputs(self) -> Iterator[str]:
        """A sentence about each file and model that `fit` would not find; nothing is loaded."""
        yield from ()

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
class ConstantPrefix(Prompt):
    """`prefix` before every query: what was recalled does not reach the model."""

    shows_edits: ClassVar[bool] = False
    prefix: str

    def compose(self, lm: LM, queries: Sequence[str], facts: Sequence[Sequence[str]]) -> list[str]:
        return [self.prefix + query for query in queries]


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
