"""RippleEdits (Cohen et al. 2023): what else must change with a fact, and what must not, by six criteria.

A test has one or several queries (fold: any for OR, all for AND) and is executed only if the unedited model answers its
condition queries, and knew the fact that the edit replaces (of "recent" records: did not know the new one), and the
edited one says the new fact. The answer of the authors' code is free text that contains a name of every right object.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile

from kedit.cases import Case, Condition, Edit, Fold, Frame, Kind, Probe
from kedit.common.options import Count
from kedit.data.records import Record

CRITERIA: dict[str, Kind] = {
    "Logical_Generalization": "logical_generalization",
    "Compositionality_I": "compositionality_1",
    "Compositionality_II": "compositionality_2",
    "Subject_Aliasing": "subject_aliasing",
    "Forgetfulness": "preservation",
    "Relation_Specificity": "relation_specificity",
}
FOLDS: dict[str, Fold] = {"OR": "any", "AND": "all"}


def recognises(record: Record) -> bool:
    """By its edit and its criteria."""
    return "edit" in record.data and any(name in record.data for name in CRITERIA)


def dataset_of(record: Record) -> str:
    """The choice of conf/dataset that reads a file of such records."""
    return "rippleedits"


def parse(record: Record, case_id: str, dropped: Counter[str], *, max_new: Count = 50) -> Case:
    """One record. `max_new`: tokens of a free answer (a number of ours)."""
    frame = Frame("", "", max_new, contains=True)
    edit, known = _edit(record.part("edit"), frame)
    probes = [Probe("reliability", edit.prompt, (edit.target_new,))]
    for name, kind in CRITERIA.items():
        for i, test in enumerate(record.parts(name)):
            probes += _test(test, kind, str(i), known, frame, dropped)
    return Case(case_id, (edit,), tuple(probes))


def _edit(record: Record, frame: Frame) -> tuple[Edit, tuple[Condition, ...]]:
    """The edit, and what must be true for its tests to count: what the unedited model knows, and that the edited one
    says the new fact.

    The file has whole sentences ("The name of the mother of A is B."): the object begins where the old and the new
    sentence differ, or, without an old one, behind the last " is " or " are ".
    """
    new = record.text("prompt").strip().rstrip(".")
    if not record.has("original_fact"):
        prompt, target = _behind_verb(record, new)
        new_fact = _probe("reliability", prompt, ((target,),), "", frame)
        return Edit(prompt, target, _subject(prompt)), (
            Condition(new_fact, right=False),
            Condition(new_fact, edited=True),
        )
    old = record.part("original_fact").text("prompt").strip().rstrip(".")
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(new, old, strict=False)))
    prompt = new[:same].rpartition(" ")[0]
    target, before = new[len(prompt) :].strip(), old[len(prompt) :].strip()
    if not (prompt and target and before) or target == before:
        raise record.error("prompt", f"is {new!r}, and no object of it stands where {old!r} has another")
    facts = [_probe("reliability", prompt, ((name,),), "", frame) for name in (before, target)]
    return Edit(prompt, target, _subject(prompt), before), (Condition(facts[0]), Condition(facts[1], edited=True))


def _behind_verb(record: Record, sentence: str) -> tuple[str, str]:
    for verb in (" is ", " are "):
        prompt, found, target = sentence.rpartition(verb)
        if found and target.strip():
            return prompt + verb.rstrip(), target.strip()
    raise record.error("prompt", f"is {sentence!r}; it needs an object behind ' is ' or ' are '")


def _subject(prompt: str) -> str | None:
    """What stands between the last "of" and the verb."""
    for verb in (" is", " are"):
        if prompt.endswith(verb) and " of " in prompt:
            return prompt.removesuffix(verb).rpartition(" of ")[2].strip() or None
    return None


def _test(
    test: Record, kind: Kind, group: str, known: tuple[Condition, ...], frame: Frame, dropped: Counter[str]
) -> Iterator[Probe]:
    """Its queries that have an answer."""
    word = test.text("test_condition") if test.has("test_condition") else "OR"
    if word not in FOLDS:
        raise test.error("test_condition", f"is {word!r}; give {' or '.join(FOLDS)}")
    needed = [found for query in test.parts("condition_queries") if (found := _query(query))]
    conditions = (*known, *(Condition(_probe("reliability", *found, "", frame)) for found in needed))
    for query in test.parts("test_queries"):
        found = _query(query)
        if found is None:
            dropped[f"{kind} query without an answer"] += 1
            continue
        yield replace(_probe(kind, *found, group, frame), fold=FOLDS[word], conditions=conditions)


def _probe(kind: Kind, prompt: str, every: tuple[tuple[str, ...], ...], group: str, frame: Frame) -> Probe:
    return Probe(kind, prompt, every[0], group, frame=frame, every=every if len(every) > 1 else ())


def _query(query: Record) -> tuple[str, tuple[tuple[str, ...], ...]] | None:
    """(prompt, names of each right object); None if it has no answer. Names of one character are no evidence, unless
    they are digits."""
    objects = [
        tuple(dict.fromkeys(name for name in _names(item) if len(name) > 1 or name.isdigit()))
        for item in query.parts("answers")
    ]
    return (query.text("prompt"), tuple(filter(None, objects))) if any(objects) else None


def _names(item: Record) -> list[str]:
    return [item.text("value"), *(name for name in item.get("aliases") or [] if isinstance(name, str) and name.strip())]
