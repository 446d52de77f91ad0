"""KnowEdit's four sets: ZsRE, WikiBio, WikiData_recent, WikiData_counterfact (Zhang et al. 2024), and records that a
user writes: prompt, target_new, subject, and what else there is."""

from collections import Counter
from collections.abc import Iterator

from kedit.cases import Case, Edit, Kind, Probe
from kedit.data.records import Record

GROUPS: dict[Kind, tuple[str, ...]] = {
    "portability": ("Subject_Aliasing", "Reasoning", "Logical_Generalization"),
    "locality": ("Relation_Specificity", "Forgetfulness"),
}


def recognises(record: Record) -> bool:
    """By the fields that are there, whatever they hold. Other forms have a prompt and a target too: ask them first."""
    return ("prompt" in record.data or "text" in record.data) and (
        "target_new" in record.data or "labels" in record.data
    )


def dataset_of(record: Record) -> str:
    """The choice of conf/dataset that reads a file of such records."""
    return "knowedit"


def parse(record: Record, case_id: str, dropped: Counter[str], *, first_locality_only: bool = False) -> Case:
    """One row. The four sets differ in names (WikiBio: text, labels, concept) and in the form of their answers.

    `first_locality_only` asks the first locality question of each group, as KDPO's WikiBio script does.
    """
    prompt, target = record.text("prompt", "text"), record.text("target_new", "labels", blank=True)
    old = record.optional_answers("ground_truth")
    edit = Edit(prompt, target, record.text("subject", "concept"), old[0] if old else None)
    probes = [Probe("reliability", prompt, (target,))]
    for name in ("rephrase_prompt", "rephrase"):
        if record.has(name):
            probes.append(Probe("generality", record.text(name), (target,)))
    for kind, groups in GROUPS.items():
        first = 1 if kind == "locality" and first_locality_only else None
        probes += _grouped(record.part(kind), kind, groups, dropped, first)
    return Case(case_id, (edit,), (*probes, Probe("fluency", prompt, ())))


def _grouped(
    part: Record, kind: Kind, groups: tuple[str, ...], dropped: Counter[str], first: int | None
) -> Iterator[Probe]:
    """The `first` (None: all) prompts of every known group; blank answers and empty groups are dropped and counted."""
    for unknown in sorted(part.data.keys() - set(groups)):
        dropped[f"{kind} group {unknown!r}, which is not KnowEdit's"] += 1
        part.get(unknown)  # it is counted, so nobody needs to be told again
    for group in groups:
        questions = part.parts(group)
        for question in questions[:first]:
            accepted = question.answers("ground_truth")
            if accepted:
                yield Probe(kind, question.text("prompt"), accepted, group)
            else:
                dropped[f"{kind} probe with a blank answer"] += 1
        if group in part.data and not questions:
            dropped[f"{kind} group without a question"] += 1
