"""What is edited and what is asked: who may see what is a type, not a convention."""

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

from kedit.common.errors import InputError

Kind = Literal[
    "reliability",
    "generality",
    "portability",
    "locality",
    "efficacy",
    "paraphrase",
    "neighborhood",
    "one_hop",  # a question whose answer is one fact of a chain, MQuAKE's
    "multi_hop",  # a question that needs the whole chain
    "all_hops",  # every question of the chain
    "unedited_multi_hop",  # the same as multi_hop of a case that is not edited: the old answer counts
    "logical_generalization",  # RippleEdits' six criteria
    "compositionality_1",
    "compositionality_2",
    "subject_aliasing",
    "preservation",
    "relation_specificity",
    "fluency",
    "consistency",  # no probe asks for it: it is computed from a case's fluency texts
]
KINDS: tuple[Kind, ...] = get_args(Kind)
CONDITION = -1  # index of a question that is a condition of others
BENCHMARK = "benchmark"  # the kind of rows that measure the whole model and belong to no case
KNOWEDIT: tuple[Kind, ...] = ("reliability", "generality", "portability", "locality", "fluency")  # asked by default


Fold = Literal["mean", "any", "all"]  # how the scores of a case's probes of one kind and group become one


@dataclass(frozen=True, slots=True)
class Edit:
    """Everything an editor gets."""

    prompt: str
    target_new: str
    subject: str | None = None  # the entity's span inside `prompt`; locate-then-edit methods need it
    target_old: str | None = None  # the dataset's answer before editing; contrastive losses need it
    # the case's first locality prompt, a test prompt: only for editors that declare it (kedit.data.dataset.hand_over)
    loc_prompt: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Frame:
    """What a question stands in if it is not asked bare, and how its free answer is read."""

    before: str
    after: str
    max_new: int  # tokens of a free answer
    contains: bool = False  # the free answer is right if it contains an acceptable string


@dataclass(frozen=True, slots=True)
class Probe:
    """Everything an evaluator gets: one question asked before and after editing."""

    kind: Kind
    prompt: str
    answers: tuple[str, ...]  # acceptable strings, the canonical one first; empty for fluency, which asks for free text
    group: str = ""  # the dataset's own sub-type: "Subject_Aliasing", "Forgetfulness", "one_hop"
    competing_answer: str | None = None  # the object that competes with the answer: old against new, new against true
    topic: str = ""  # a fluency text's, "relation/object": consistency finds its reference texts by it
    fold: Fold = "mean"  # the same for all probes of a case, kind and group
    frame: Frame | None = None
    every: tuple[tuple[str, ...], ...] = ()  # if a free answer must name several objects: the names of each
    conditions: tuple["Condition", ...] = ()  # what a model must answer for the probe to count


@dataclass(frozen=True, slots=True)
class Condition:
    """A question to the unedited model, or with `edited` to the one under test, and whether it must be right or wrong.
    An unedited model under test need not fulfil what is asked of the edited one."""

    probe: Probe
    right: bool = True
    edited: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """One dataset record."""

    id: str  # stable: "<dataset file>-<index in file>", never an index in a batch
    edits: tuple[Edit, ...]  # one, except for multi-edit cases
    probes: tuple[Probe, ...]
    edited: bool = True  # False: never edited, but asked at every test (MQuAKE-Remastered)


@dataclass(frozen=True, slots=True)
class Question:
    """A probe with its place: `index` counts the probes of the same kind and group within the case."""

    case: str
    index: int
    probe: Probe
    edit: str = ""  # the case's (first) edit, prompt and answer: only for evaluations that give it away


def condition_question(question: Question, condition: Condition) -> Question:
    """How a condition of this question is asked. It has no row of its own."""
    return Question(question.case, CONDITION, condition.probe)


def check_subjects(cases: Iterable[Case], where: Callable[[Case, str], str] | None = None) -> None:
    """For editors that locate the subject in the prompt. Raises InputError naming the first case without it; `where`
    says where a text of a case stands in the data."""
    for case in cases:
        for edit in case.edits:
            if not edit.subject or edit.subject not in edit.prompt:
                place = where(case, edit.subject or edit.prompt) if where else case.id
                raise InputError(
                    f"{place}: the subject {edit.subject!r} is not in the prompt {edit.prompt!r}, where the editor "
                    f"looks for it{_nearly(edit)}; correct the record, or choose an editor that needs no subject"
                )


def _nearly(edit: Edit) -> str:
    """How a subject that is not in the prompt differs from one that is."""
    subject, prompt = (unicodedata.normalize("NFC", text) for text in (edit.subject or "", edit.prompt))
    if subject and subject in prompt:
        return " (they differ in their Unicode normal form)"
    if subject and subject.casefold() in prompt.casefold():
        return " (it stands there in other letter case)"
    if subject.strip() and subject.strip() in prompt:
        return " (it stands there without the blanks at its edges)"
    return ""


def questions_of(case: Case, kinds: tuple[Kind, ...] = KINDS) -> list[Question]:
    """The case's probes of these kinds, in file order."""
    seen: dict[tuple[str, str], int] = {}
    edit = next((f"{edit.prompt.rstrip()} {edit.target_new.strip()}" for edit in case.edits), "")
    found = []
    for probe in case.probes:
        place = (probe.kind, probe.group)
        index = seen[place] = seen.get(place, -1) + 1
        if probe.kind in kinds:
            found.append(Question(case.id, index, probe, edit))
    return found
