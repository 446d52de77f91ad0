"""IKE's demonstrations: solved examples of reading a new fact, put before the fact and its query."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from kedit.cases import Case
from kedit.common.cache import cached, digest
from kedit.common.errors import InputError
from kedit.common.options import Count, Name, PathText, Rule, has_fields
from kedit.data.files import parse_file, recognise
from kedit.data.missing_files import at_hand, missing_files
from kedit.editors.incontext.augmentation import qa
from kedit.editors.incontext.prompts import Prompt
from kedit.lm import LM
from kedit.lm.sentence_encoder import MINILM, load, missing_encoder, source

log = logging.getLogger(__name__)
OPTION = "editor.prompt.path"
VECTORS = "vectors.safetensors"
KEPT_FROM = 2000  # demonstrations; the embeddings of fewer are made faster than they are kept
FactTemplate = Annotated[str, has_fields("fact", "query"), Rule("a text with {fact} and {query}")]


@dataclass(kw_only=True, eq=False)
class Demonstrations(Prompt):
    """IKE's prompt (Zheng et al. 2023, arXiv 2305.12740, §3): the `k` demonstrations nearest to the edit and its query,
    the nearest first, then these; each as `template`, with {fact} and {query}, and ended by `end`. The query itself may
    have another template, `asked` (None: the same).

    Demonstrations are made of training cases: copy (the fact asked as it is), update (asked in other words), retain
    (asked something else, with the old answer). The cases are those of the file `path`, of any form that kedit knows;
    None: the dataset's training cases.
    """

    k: Count
    template: FactTemplate
    end: str
    asked: FactTemplate | None = None
    encoder: Name = MINILM
    path: PathText | None = None

    @property
    def needs_train(self) -> bool:  # type: ignore[override]
        return self.path is None

    def missing_inputs(self) -> Iterator[str]:
        yield from missing_encoder(self.encoder, "editor.prompt.encoder")
        if self.path is not None:
            instead = f"{OPTION}=null for the dataset's training cases"
            yield from missing_files([(OPTION, Path(self.path).expanduser())], instead)

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        cases = train if self.path is None else _cases(Path(self.path).expanduser())
        self.texts = list(dict.fromkeys(text for case in cases for text in self._demonstrations(case)))
        if len(self.texts) < self.k:
            raise InputError(
                f"the training split makes {len(self.texts)} demonstrations, a prompt takes {self.k}; give more with "
                "dataset.train_path (world: dataset.train_people), or fewer with editor.prompt.k"
            )
        self.embed = load(self.encoder)
        self.vectors = self._embedded()

    def compose(self, lm: LM, queries: Sequence[str], facts: Sequence[Sequence[str]]) -> list[str]:
        pairs = [(" ".join(known), query.rstrip()) for query, known in zip(queries, facts, strict=True)]
        if not pairs:
            return []
        vectors = self.embed([self._write(*pair) + self.end for pair in pairs]).cpu()
        nearest = (vectors @ self.vectors.T).topk(self.k).indices.tolist()
        last = [(self.asked or self.template).format(fact=fact, query=query) for fact, query in pairs]
        return ["".join(self.texts[i] for i in places) + text for places, text in zip(nearest, last, strict=True)]

    def _demonstrations(self, case: Case) -> list[str]:
        return [self._write(fact, query) + f" {answer.strip()}{self.end}" for fact, query, answer in lessons(case)]

    def _write(self, fact: str, query: str) -> str:
        return self.template.format(fact=fact, query=query.rstrip())

    def _embedded(self) -> Float[Tensor, "n d"]:
        """The demonstrations' embeddings; those of many are kept in the cache."""
        if len(self.texts) < KEPT_FROM:
            return self.embed(self.texts).cpu()

        def build(folder: Path) -> None:
            log.info("embedding %d demonstrations, once", len(self.texts))
            save_file({"vectors": self.embed(self.texts).cpu()}, folder / VECTORS)

        key = {"texts": digest(self.texts), "encoder": self.encoder, "source": source(self.encoder)}
        return load_file(cached("demonstrations", key, build) / VECTORS)["vectors"]


def lessons(case: Case) -> list[tuple[str, str, str]]:
    """(fact, query, answer) of all that can be made of a case; questions beside the edits' own belong to the first."""
    edit = case.edits[0]
    updated = [(probe.prompt, probe.answers[0]) for probe in case.probes if probe.kind == "generality"]
    retained = [(probe.prompt, probe.answers[0]) for probe in case.probes if probe.kind == "locality"]
    copied = [(qa(other).text, other.prompt, other.target_new) for other in case.edits]
    return [*copied, *((qa(edit).text, query, answer) for query, answer in [*updated, *retained])]


def _cases(path: Path) -> list[Case]:
    """Those of a file that have a target."""
    there = at_hand(path)
    return parse_file(recognise(there, OPTION).parse, there, True, Counter(), OPTION)
