"""ZsRE in MEND's form, with or without the GPT-4 portability questions (OVERTONE's ZsRE)."""

from collections import Counter

from kedit.cases import Case, Edit, Probe
from kedit.data.records import Record, answers


def recognises(record: Record) -> bool:
    return record.has("src") and record.has("alt")


def parse(record: Record, case_id: str, dropped: Counter[str]) -> Case:
    """The edit is src -> alt. `loc` keeps its literal "nq question: ", as the reference does."""
    prompt, target = record.text("src"), record.text("alt", blank=True)
    probes = [
        Probe("reliability", prompt, (target,)),
        Probe("generality", record.text("rephrase"), (target,)),
    ]
    unrelated = answers(record.data.get("loc_ans"), record, "loc_ans")
    if unrelated:
        probes.append(Probe("locality", record.text("loc"), unrelated, "neighborhood"))
    else:
        dropped["locality probe with a blank answer"] += 1
    hop = record.part("portability")
    if hop.data:
        probes.append(Probe("portability", hop.text("New Question"), (hop.text("New Answer"),), "one_hop"))
    return Case(case_id, (Edit(prompt, target, record.text("subject")),), (*probes, Probe("fluency", prompt, ())))
