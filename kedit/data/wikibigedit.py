"""WikiBigEdit (Thede et al. 2025): changes of Wikidata in its own form; its files have one interval each."""

from collections import Counter

from kedit.cases import Case, Edit, Kind, Probe
from kedit.data.records import Record


def recognises(record: Record) -> bool:
    """By the fields that are there, whatever they hold."""
    return "update" in record.data and "ans" in record.data


def dataset_of(record: Record) -> str:
    """The choice of conf/dataset that reads a file of such records."""
    return "wikibigedit"


def parse(record: Record, case_id: str, dropped: Counter[str]) -> Case:
    """One row: the edit is update -> ans, which is true, and no old answer is stated.

    Generality has a group for the rephrased question and one for those of personas; portability is the question over
    two hops, which a row may lack. `loc` is a question of the same relation about something else.
    """
    prompt, answer = record.text("update"), record.text("ans", blank=True)
    probes = [
        Probe("reliability", prompt, (answer,)),
        Probe("generality", record.text("rephrase"), (answer,), "rephrase"),
    ]
    personas = [name for name in record.data if name == "personas" or name.startswith("personas_")]
    probes += [Probe("generality", record.text(name), (answer,), "personas") for name in personas if record.has(name)]
    hops: tuple[tuple[Kind, str, str], ...] = (
        ("portability", "mhop", "multi_hop"),
        ("locality", "loc", "same_relation"),
    )
    for kind, name, group in hops:
        if not record.has(name):
            record.get(f"{name}_ans")
            continue
        accepted = record.answers(f"{name}_ans")
        if accepted:
            probes.append(Probe(kind, record.text(name), accepted, group))
        else:
            dropped[f"{kind} probe with a blank answer"] += 1
    edit = Edit(prompt, answer, record.text("subject"))
    return Case(case_id, (edit,), (*probes, Probe("fluency", prompt, ())))
