"""What alignment learns from (LTE, arXiv 2402.11905 §3.1): prompts with updated facts, and what must be said then.

A conversation is an Edit: a prompt to read, and an answer to say.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kedit.cases import Case, Edit
from kedit.common.errors import InputError
from kedit.common.options import Count, CountOrNone, Name, PathText, Seed, Share, Shares
from kedit.data.missing_files import at_hand, check_file, missing_files
from kedit.data.records import Record, read_records
from kedit.editors.incontext.augmentation import Augmentation, qa, with_augmentations
from kedit.editors.incontext.prompts import UpdatedInformation
from kedit.editors.incontext.vector_index import Index
from kedit.lm.sentence_encoder import MINILM, load, missing_encoder

REPHRASED = ("generality", "paraphrase")  # kinds of probe that ask the edit itself
FOLLOWS = (*REPHRASED, "portability")  # ... that an edit decides
RELEASED, GENERAL = "editor.alignment.conversations.path", "editor.alignment.conversations.general"


class Conversations:
    """A source of conversations."""

    needs_train: ClassVar[bool] = False

    def missing_inputs(self) -> Iterator[str]:
        """A sentence about each file and model that `build` would not find; nothing is loaded."""
        yield from ()

    def build(self, train: Sequence[Case], prompt: UpdatedInformation) -> dict[str, list[Edit]]:
        """By kind; always the same for the same training cases. Raises InputError if there is nothing to learn from."""
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class Released(Conversations):
    """LTE's own file (huggingface.co/datasets/YuxinJiang/LTE_train_data): a JSON list of objects with `conversations`,
    a list of {from: human or user, value} and {from: gpt or assistant, value}. The first question and the answer to it
    are taken; they are written in LTE's prompt already."""

    path: PathText | None
    needs_train: ClassVar[bool] = False

    def missing_inputs(self) -> Iterator[str]:
        try:
            check_file(self._file(), RELEASED, "editor/alignment/conversations=cases")
        except InputError as error:
            yield str(error)

    def _file(self) -> Path:
        if self.path is None:
            raise InputError(
                f"{RELEASED} is null: LTE's released conversations are not part of kedit; give their json file, or "
                "editor/alignment/conversations=cases"
            )
        return Path(self.path).expanduser()

    def build(self, train: Sequence[Case], prompt: UpdatedInformation) -> dict[str, list[Edit]]:
        return {"released": [_first_turns(record) for record in read_records(at_hand(self._file()), RELEASED)]}


def _first_turns(record: Record) -> Edit:
    turns = record.data.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2:
        raise record.error("conversations", "is not a list of at least two turns; give LTE's form")
    asked, said = (Record(turn, f"{record.where}, turn {i}") for i, turn in enumerate(turns[:2]))
    if asked.text("from") not in ("human", "user") or said.text("from") not in ("gpt", "assistant"):
        raise record.error("conversations", "does not begin with human (user) and gpt (assistant); give LTE's form")
    return Edit(asked.text("value"), said.text("value"))


@dataclass(kw_only=True, eq=False)
class FromCases(Conversations):
    """LTE's recipe over training cases: `rounds` times over all, each time with other draws.

    `draws` says how many conversations of each kind a round has for a case:
    in_scope: a question that the edit decides, with its fact, and the new answer. A share `rewrites` asks the edit's
        own prompt, the others a rephrased prompt or a portability question, where there is one.
    in_scope_alone: the same without a fact, and the old answer, where it is known and decided by no portability.
    out_of_scope, out_of_scope_alone: a locality question with the fact and without, and its answer.
    other_fact: the own prompt (or a rephrased one) of another case with this one's fact, and its old answer.
    general, general_alone: an instruction of the file `general` (jsonl: instruction, output; null: none) with the fact
        and without, and its answer.
    A share `renamed` of in_scope is about another training subject, put into the case's fact and question wherever its
        own stands, and a third into its answer where that is a subject: of few cases, answers are else learnt by heart
        instead of read.
    `facts`: the shares of prompts with one fact, two, three: the true one is first, the others are drawn from the
    `near` training edits of another subject that are nearest by `encoder` (null: drawn from all). With an
    `augmentation` each fact is shown in any of its wordings, all equally often.
    """

    draws: Mapping[str, CountOrNone]
    rounds: Count = 1
    rewrites: Share = 0.3
    renamed: Share = 0.0
    facts: Shares = (0.5, 0.25, 0.25)
    near: Count = 5
    encoder: Name | None = MINILM
    augmentation: Augmentation | None = None
    general: PathText | None = None
    seed: Seed = 0
    needs_train: ClassVar[bool] = True

    def __post_init__(self) -> None:
        unknown = set(self.draws) - set(KINDS)
        if unknown:
            raise InputError(
                f"editor.alignment.conversations.draws has {', '.join(sorted(unknown))}; choose from {', '.join(KINDS)}"
            )

    def missing_inputs(self) -> Iterator[str]:
        if self.encoder is not None:
            yield from missing_encoder(self.encoder, "editor.alignment.conversations.encoder")
        if self.general is not None:
            yield from missing_files([(GENERAL, Path(self.general).expanduser())], f"{GENERAL}=null")
        if self.augmentation is not None:
            yield from self.augmentation.missing_inputs()

    def build(self, train: Sequence[Case], prompt: UpdatedInformation) -> dict[str, list[Edit]]:
        if not train:
            raise InputError(
                "alignment learns from training cases and the data has none; give some with dataset.train_path "
                "(world: dataset.train_people), or a trained adapter with editor.alignment.trained=DIR"
            )
        speaker = ExampleSampler(self, train, prompt, _instructions(self.general) if self.general else [])
        spoken: dict[str, list[Edit]] = {kind: [] for kind in KINDS if self.draws.get(kind)}
        for case in range(len(train) * self.rounds):
            for kind, conversations in spoken.items():
                said = (KINDS[kind](speaker, case % len(train)) for _ in range(self.draws[kind]))
                conversations += [conversation for conversation in said if conversation]
        return spoken


def _instructions(file: str) -> list[Edit]:
    """What a file asks and answers; an `input` that is not empty is part of the question, as in Alpaca's files."""
    asked = []
    for record in read_records(at_hand(Path(file).expanduser()), GENERAL):
        given = record.text("input", blank=True) if record.has("input") else ""
        question = record.text("instruction") + (f"\n\n{given}" if given.strip() else "")
        asked.append(Edit(question, record.text("output")))
    return asked


class ExampleSampler:
    """Draws one conversation after another about training cases, named by their place; none where a case has no
    question of the kind."""

    def __init__(
        self, source: FromCases, train: Sequence[Case], prompt: UpdatedInformation, instructions: Sequence[Edit]
    ):
        self.source, self.train, self.prompt, self.instructions = source, train, prompt, instructions
        self.rng = random.Random(f"conversations-{source.seed}")
        self.wordings = _wordings(train, source.augmentation)
        self.others = _others(train, source.near, source.encoder)
        self.subjects = sorted({_subject(case) for case in train})

    def in_scope(self, case: int) -> Edit | None:
        other = self.rng.randrange(len(self.train))
        if self.rng.random() < self.source.renamed and _can_trade(self.train[case], self.train[other]):
            return self._renamed(case, other)
        return self._told(self._rewrite_or(self._new(case), _asked(self.train[case], FOLLOWS)), case)

    def _new(self, case: int) -> list[Edit]:
        return [Edit(edit.prompt, edit.target_new) for edit in self.train[case].edits]

    def _renamed(self, case: int, other: int) -> Edit | None:
        """In scope, with the other's subject in the place of the case's own, and a third one where the answer is a
        subject too."""
        own, name = _subject(self.train[case]), _subject(self.train[other])
        answer = self.train[case].edits[0].target_new
        named = [query for query in _asked(self.train[case], FOLLOWS) if own in query.prompt + query.target_new]
        told = self._told(self._rewrite_or(self._new(case), named), case, but=other)
        swapped = {own: name}
        if answer in self.subjects:
            swapped[answer] = self.rng.choice([third for third in self.subjects if third not in (own, name)])
        for old, new in swapped.items():
            told = told and Edit(told.prompt.replace(old, new), told.target_new.replace(old, new))
        return told

    def in_scope_alone(self, case: int) -> Edit | None:
        edits = self.train[case].edits
        old = edits[0].target_old
        rewrites = [Edit(edit.prompt, edit.target_old) for edit in edits if edit.target_old]
        rephrased = _asked(self.train[case], REPHRASED) if old and len(edits) == 1 else []
        return self._rewrite_or(rewrites, [Edit(query.prompt, str(old)) for query in rephrased])

    def out_of_scope(self, case: int) -> Edit | None:
        return self._told(self.out_of_scope_alone(case), case)

    def out_of_scope_alone(self, case: int) -> Edit | None:
        kept = self.train[case]
        return self._drawn(_asked(kept, ("locality",)) or _asked(kept, ("neighborhood",)))

    def other_fact(self, case: int) -> Edit | None:
        if not self.others[case]:
            return None
        other = self.rng.choice(self.others[case])
        return self._told(self.in_scope_alone(other), case, but=other)

    def general(self, case: int) -> Edit | None:
        return self._told(self.general_alone(case), case)

    def general_alone(self, case: int) -> Edit | None:
        return self._drawn(self.instructions)

    def _drawn(self, queries: Sequence[Edit]) -> Edit | None:
        return self.rng.choice(queries) if queries else None

    def _rewrite_or(self, rewrites: Sequence[Edit], others: Sequence[Edit]) -> Edit | None:
        return self._drawn(rewrites if not others or self.rng.random() < self.source.rewrites else others)

    def _told(self, query: Edit | None, case: int, but: int | None = None) -> Edit | None:
        """The query behind the case's facts and others, of which none is that of case `but`."""
        if query is None:
            return None
        [count] = self.rng.choices(range(len(self.source.facts)), self.source.facts)
        others = [other for other in self.others[case] if other != but]
        chosen = [case, *self.rng.sample(others, min(count, len(others)))]
        facts = [self.rng.choice(wordings) for i in chosen for wordings in self.wordings[i]]
        return Edit(self.prompt.write(query.prompt, facts), query.target_new)


KINDS: dict[str, Callable[[ExampleSampler, int], Edit | None]] = {
    "in_scope": ExampleSampler.in_scope,
    "in_scope_alone": ExampleSampler.in_scope_alone,
    "out_of_scope": ExampleSampler.out_of_scope,
    "out_of_scope_alone": ExampleSampler.out_of_scope_alone,
    "other_fact": ExampleSampler.other_fact,
    "general": ExampleSampler.general,
    "general_alone": ExampleSampler.general_alone,
}


def _asked(case: Case, kinds: Sequence[str]) -> list[Edit]:
    """The distinct questions of the case's probes of these kinds, with their canonical answers."""
    return [Edit(p, a) for p, a in {x.prompt: x.answers[0] for x in case.probes if x.kind in kinds}.items()]


def _wordings(train: Sequence[Case], augmentation: Augmentation | None) -> list[list[list[str]]]:
    """For each edit of each case, the texts that may stand for it."""
    forms = iter(with_augmentations([edit for case in train for edit in case.edits], augmentation))
    return [[[form.text for form in next(forms)] for _ in case.edits] for case in train]


def _others(train: Sequence[Case], near: int, encoder: str | None) -> list[list[int]]:
    """For each case, the others that may stand beside it: the `near` nearest, if there is an encoder."""
    if encoder is None:
        return [[j for j in range(len(train)) if _apart(case, train[j])] for case in train]
    index = Index()
    index.add(load(encoder)([qa(case.edits[0]).text for case in train]))
    _, ranked = index.nearest(index.vectors, 8 * near)
    return [[j for j in row if _apart(train[i], train[j])][:near] for i, row in enumerate(ranked.tolist())]


def _apart(a: Case, b: Case) -> bool:
    """Have they other subjects, and does neither's answer name the other's?"""
    left, right = _subject(a), _subject(b)
    return left != right and left not in b.edits[0].target_new and right not in a.edits[0].target_new


def _can_trade(a: Case, b: Case) -> bool:
    """Whether the subject of one may stand in the other's texts: both must name theirs."""
    return bool(a.edits[0].subject and b.edits[0].subject) and _apart(a, b)


def _subject(case: Case) -> str:
    """What tells cases about one subject apart from others: that of the first edit; its prompt if the data names
    none."""
    edit = case.edits[0]
    return edit.subject or edit.prompt
