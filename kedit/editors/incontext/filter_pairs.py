"""What a filter learns from: queries beside stored edits, relevant to them or not (KEDAS, App. D, Eqs. 16-20)."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from kedit.cases import Case
from kedit.common.errors import InputError
from kedit.common.options import CountOrNone, PathText, Seed, Share
from kedit.common.text_files import read_lines
from kedit.data.missing_files import at_hand, check_file, missing_files
from kedit.data.records import Record, read_records
from kedit.editors.incontext.augmentation import Augmentation, qa, with_augmentations

GENERAL = "editor.filter.pairs.general"
TOGETHER = 512  # queries that are compared with all strings at a time


@dataclass(frozen=True, slots=True)
class FilterPair:
    query: str
    stored: str
    relevant: bool
    kind: str  # the query's: edit, portability, locality, general; mined: any query with another case's edit
    case: str  # whose query it is


@dataclass(frozen=True, kw_only=True)
class FilterPairs:
    """KEDAS pairs the QA form of a case's edit with the edit's prompt and the portability prompts (relevant), with the
    locality prompts, and for a `general_share` of the edits with a prompt of the file `general` (irrelevant). Where a
    case has no portability its rephrased prompts stand for it: MEND's ZsRE.

    The rest is kedit's own: `rephrases` are relevant beside portability too; `augmentation`'s forms are paired as the
    QA form is; and each query is irrelevant to the `mined` strings of cases about other subjects that share most
    The rest is kedit's own: `rephrases` are relevant beside portability too; `augmentation`'s forms are paired as the
    QA form is; `questions`: an edit that is stated ("The R of S is") is paired again as a question, with its queries
    stated or asked, so that what is learnt of other relations of a subject does not depend on the form; and each query
    is irrelevant to the `mined` strings of cases about other subjects that share most characters with it, such as a
    retriever returns from a memory of many edits.
    """

    general: PathText | None = None
    general_share: Share = 0.5
    rephrases: bool = False
    augmentation: Augmentation | None = None
    questions: bool = False
    mined: CountOrNone = 0
    seed: Seed = 0  # draws the general prompts, and forms

    def __post_init__(self) -> None:
        if not 0 <= self.general_share <= 1 or self.mined < 0:
            raise InputError(
                f"filter.pairs: general_share={self.general_share} is a share, from 0 to 1, and mined={self.mined} "
                "a number of strings, 0 or more"
            )

    def missing_inputs(self) -> Iterator[str]:
        """A sentence if the general prompts are not there."""
        if self.general is not None:
            file = Path(self.general).expanduser()
            yield from missing_files([(GENERAL, file)], f"{GENERAL}=null", "general prompts")

    def of(self, train: Sequence[Case]) -> list[FilterPair]:
        """Every pair of these cases, in their order. Raises InputError where there are no cases, and where the general
        prompts cannot be read."""
        if not train:
            raise InputError(
                "the filter learns from training cases and has none; give some with dataset.train_path (world: "
                "dataset.train_people), or a trained one with editor.filter.trained=DIR"
            )
        stored = self._stored(train)
        asked = [list(self._asked(case)) for case in train]
        pairs = [
            FilterPair(query, text, relevant, kind, case.id)
            for case, texts, queries in zip(train, stored, asked, strict=True)
            for query, relevant, kind in queries
            for text in texts
        ]
        pairs += self._as_questions(train, asked) if self.questions else []
        pairs += self._general(train, stored)
        return pairs + (self._mined(train, stored, asked) if self.mined else [])

    def _stored(self, train: Sequence[Case]) -> list[list[str]]:
        """Pairs of each case."""
        forms = with_augmentations([edit for case in train for edit in case.edits], self.augmentation)
        texts = iter([list(dict.fromkeys(form.text for form in mine)) for mine in forms])
        return [[text for _ in case.edits for text in next(texts)] for case in train]

    def _asked(self, case: Case) -> Iterator[tuple[str, bool, str]]:
        """(query, relevant, kind)"""
        for edit in case.edits:
            yield edit.prompt, True, "edit"
        portability = [probe for probe in case.probes if probe.kind == "portability"]
        if self.rephrases or not portability:
            portability += [probe for probe in case.probes if probe.kind == "generality"]
        for probe in portability:
            yield probe.prompt, True, "portability"
        for probe in case.probes:
            if probe.kind == "locality":
                yield probe.prompt, False, "locality"

    def _as_questions(
        self, train: Sequence[Case], asked: Sequence[Sequence[tuple[str, bool, str]]]
    ) -> Iterator[FilterPair]:
        """The queries of edits that are stated, beside the edit as a question; each stated or asked, by lot."""
        rng = random.Random(self.seed)
        for case, queries in zip(train, asked, strict=True):
            edits = [replace(edit, prompt=q) for edit in case.edits if (q := as_question(edit.prompt))]
            for query, relevant, kind in queries:
                forms = [query, as_question(query) or query]
                for edit in edits:
                    yield FilterPair(rng.choice(forms), qa(edit).text, relevant, kind, case.id)

    def _general(self, train: Sequence[Case], stored: Sequence[Sequence[str]]) -> list[FilterPair]:
        if self.general is None:
            return []
        rng = random.Random(self.seed)
        prompts = general_prompts(Path(self.general).expanduser())
        chosen = sorted(rng.sample(range(len(train)), round(self.general_share * len(train))))
        return [
            FilterPair(rng.choice(prompts), text, False, "general", train[i].id) for i in chosen for text in stored[i]
        ]

    def _mined(
        self, train: Sequence[Case], stored: Sequence[Sequence[str]], asked: Sequence[Sequence[tuple[str, bool, str]]]
    ) -> list[FilterPair]:
        """Not of a case about the same subject, or that edits what the query asks: it may be relevant."""
        owners = [i for i, mine in enumerate(stored) for _ in mine]
        texts = [text for mine in stored for text in mine]
        queries = [(i, query) for i, mine in enumerate(asked) for query, _, _ in mine]
        subjects = [{edit.subject or edit.prompt for edit in case.edits} for case in train]
        edited = {(i, edit.prompt.strip()) for i, case in enumerate(train) for edit in case.edits}
        most = self.mined + 8 * max(map(len, stored))  # some are about the case's own subject
        near = _nearest([query for _, query in queries], texts, most)
        found = []
        for i, query in queries:
            others = [
                j
                for j in near[query]
                if subjects[owners[j]].isdisjoint(subjects[i]) and (owners[j], query.strip()) not in edited
            ]
            found += [FilterPair(query, texts[j], False, "mined", train[i].id) for j in others[: self.mined]]
        return found


def as_question(prompt: str) -> str | None:
    """ "The capital of Spain is" as "What is the capital of Spain?"; None of what is put otherwise."""
    found = re.fullmatch(r"The (.+) (is|are|was|were)", prompt.strip())
    return f"What {found[2]} the {found[1]}?" if found else None


def _nearest(queries: Sequence[str], texts: Sequence[str], k: int) -> dict[str, list[int]]:
    """For each distinct query the places of the `k` nearest texts, by TF-IDF of their characters, the nearest first."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, dtype=np.float32)
    stored, distinct = vectoriser.fit_transform(texts).T, list(dict.fromkeys(queries))
    asked = vectoriser.transform(distinct)
    near: dict[str, list[int]] = {}
    for begin in range(0, len(distinct), TOGETHER):
        alike = torch.from_numpy((asked[begin : begin + TOGETHER] @ stored).toarray())
        places = alike.topk(min(k, len(texts))).indices.tolist()
        near |= zip(distinct[begin : begin + TOGETHER], places, strict=True)
    return near


def general_prompts(path: Path) -> list[str]:
    """Those of a file: of .json and .jsonl each record's instruction, prompt or text, or the first turn of its
    conversations; else one in each line."""
    check_file(path, GENERAL, f"{GENERAL}=null", "general prompts")
    path = at_hand(path)
    if path.suffix in (".json", ".jsonl"):
        prompts = [_prompt(record) for record in read_records(path, GENERAL)]
    else:
        prompts = [line.strip() for line in read_lines(path) if line.strip()]
    if not prompts:
        raise InputError(f"{path}: holds no prompt; give another file with {GENERAL}=FILE, or set {GENERAL}=null")
    return prompts


def _prompt(record: Record) -> str:
    """What a record asks: Evol-Instruct's second version and LTE's file hold conversations."""
    turns = record.data.get("conversations")
    if isinstance(turns, list) and turns:
        return Record(turns[0], f"{record.where}, turn 0").text("value")
    return record.text("instruction", "prompt", "text")
