"""KnowEdit's four sets: ZsRE, WikiBio, WikiData_recent, WikiData_counterfact (Zhang et al. 2024)."""

from collections import Counter
from collections.abc import Iterator

from kedit.cases import Case, Edit, Kind, Probe
from kedit.data.records import Record, answers

GROUPS: dict[Kind, tuple[str, ...]] = {
    "portability": ("Subject_Aliasing", "Reasoning", "Logical_Generalization"),
    "locality": ("Relation_Specificity", "Forgetfulness"),
}


def recognises(record: Record) -> bool:
    return record.has("locality") and (record.has("target_new") or record.has("labels"))


def parse(record: Record, case_id: str, dropped: Counter[str], *, first_locality_only: bool = False) -> Case:
    """One row. The four sets differ in names (WikiBio: text, labels, concept) and in the form of their answers.

    `first_locality_only` asks the first locality question of each group, as KDPO's WikiBio script does.
    """
    prompt, target = record.text("prompt", "text"), record.text("target_new", "labels", blank=True)
    old = answers(record.data["ground_truth"], record, "ground_truth") if record.has("ground_truth") else ()
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
    """The `first` (null: all) prompts of every known group; blank answers and empty groups are dropped and counted."""
    for unknown in set(part.data) - set(groups):
        dropped[f"{kind} group {unknown!r}, which is not KnowEdit's"] += 1
    for group in groups:
        items = part.data.get(group) or []
        if not isinstance(items, list):
            raise part.error(group, "is not a list of questions; mend it")
        for i, item in enumerate(items[:first]):
            question = Record(item, f"{part.where}.{group}[{i}]")
            accepted = answers(question.data.get("ground_truth"), question, "ground_truth")
            if accepted:
                yield Probe(kind, question.text("prompt"), accepted, group)
            else:
                dropped[f"{kind} probe with a blank answer"] += 1
        if group in part.data and not items:
            dropped[f"{kind} group without a question"] += 1
