"""The memory of edits: every stored string with its embedding, and what is nearest to a query."""

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from kedit.common.options import Count, Name
from kedit.editors.incontext.augmentation import QA, Form
from kedit.editors.incontext.vector_index import Index
from kedit.lm.sentence_encoder import MINILM, load, missing_encoder


@dataclass(frozen=True, slots=True)
class MemoryEntry:
    """A stored string: one wording of an edit."""

    edit: int  # which one since the memory was empty, from 0
    form: str
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A stored string near a query."""

    entry: MemoryEntry
    cosine: float


@dataclass(kw_only=True, eq=False)
class EditMemory:
    """Finds the `k` stored strings nearest to a query, by the cosine of `encoder`'s embeddings (`normalize` false: by
    their inner product, as Contriever is meant). `approximate_from`: see Index."""

    k: Count
    encoder: Name = MINILM
    normalize: bool = True
    approximate_from: Count | None = None
    entries: list[MemoryEntry] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self.index = Index(self.approximate_from)
        self._known: dict[str, Float[Tensor, " d"]] = {}
        self._qa: dict[int, MemoryEntry] = {}  # the entry of each edit's QA form, by the edit's number

    def missing_inputs(self) -> Iterator[str]:
        """A sentence if the encoder cannot be had."""
        yield from missing_encoder(self.encoder, "editor.memory.encoder")

    def load(self) -> None:
        """Load the encoder. Raises InputError where it cannot be had."""
        self._encode = load(self.encoder, self.normalize)

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """In one batch; a text is embedded once between two edits (the last digits of an embedding depend on its batch,
        and a killed run must continue with the same)."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= zip(new, self._encode(new).cpu(), strict=True)
        return torch.stack([self._known[text] for text in texts])

    def represent_stored(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Vectors of what is stored."""
        return self.embed(texts)

    def represent_queries(self, queries: Sequence[str]) -> Float[Tensor, "n d"]:
        """Vectors whose inner products with those say what is near."""
        return self.embed(queries)

    def add(self, edits: Sequence[Sequence[Form]], keys: Sequence[str] | None = None) -> None:
        """Each edit in its wordings, each found by its own embedding; with `keys`, one an edit, by that of the key."""
        first = self.edits
        self._known.clear()
        new = [MemoryEntry(i, form.name, form.text) for i, forms in enumerate(edits, first) for form in forms]
        texts = [entry.text if keys is None else keys[entry.edit - first] for entry in new]
        self.index.add(self.represent_stored(texts))
        self._store(new)

    def _store(self, new: Sequence[MemoryEntry]) -> None:
        self.entries += new
        self._qa |= {entry.edit: entry for entry in new if entry.form == QA}

    @property
    def edits(self) -> int:
        return self.entries[-1].edit + 1 if self.entries else 0

    def nearest(self, queries: Sequence[str]) -> list[list[Hit]]:
        """The entries found for each query, the best first; none if nothing is stored."""
        if not self.entries or not queries:
            return [[] for _ in queries]
        cosines, places = self.index.nearest(self.represent_queries(queries), self.k)
        return [
            [Hit(self.entries[place], cosine) for cosine, place in zip(row, at, strict=True)]
            for row, at in zip(cosines.tolist(), places.tolist(), strict=True)
        ]

    def by_edit(self, hits: Sequence[Hit]) -> list[Hit]:
        """Each edit once, as its QA form, in the order of its nearest string; of equally near ones the newest first."""
        ordered = sorted(hits, key=lambda hit: (-hit.cosine, -hit.entry.edit))
        nearest = {hit.entry.edit: hit for hit in reversed(ordered)}
        return [Hit(self._qa[hit.entry.edit], hit.cosine) for hit in ordered if nearest[hit.entry.edit] is hit]

    def emptied(self) -> "EditMemory":
        """A memory of the same kind, with nothing in it."""
        other = copy(self)
        other.__post_init__()
        other.entries = []
        return other

    def clear(self) -> None:
        self.entries = []
        self._qa = {}
        self._known.clear()
        self.index.clear()

    def state(self) -> dict[str, Tensor | str]:
        if not self.entries:
            return {}
        texts = json.dumps([asdict(entry) for entry in self.entries], ensure_ascii=False)
        return {"memory": texts, "memory.vectors": self.index.vectors.clone()}

    def load_state(self, state: Mapping[str, Tensor | str]) -> None:
        self.clear()
        texts, vectors = state.get("memory"), state.get("memory.vectors")
        if isinstance(texts, str) and isinstance(vectors, Tensor):
            self._store([MemoryEntry(**entry) for entry in json.loads(texts)])
            self.index.add(vectors)
