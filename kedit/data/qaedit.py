"""QAEdit (Yang et al. 2025, arXiv 2502.11177): questions of three QA sets whose true answers are edited in."""

from collections import Counter

from kedit.cases import Case, Edit, Probe
from kedit.data.records import Record


def recognises(record: Record) -> bool:
    """By the fields that are there, whatever they hold."""
    return "target" in record.data and isinstance(record.data.get("locality", []), list) and "prompt" in record.data


def dataset_of(record: Record) -> str:
    """The choice of conf/dataset that reads a file of such records."""
    return "qaedit"


def parse(record: Record, case_id: str, dropped: Counter[str], *, first_locality_only: bool = False) -> Case:
    """One row: the edit is prompt -> target, and no old answer is stated. The subject need not stand in the prompt.

    `first_locality_only` asks the first of the five unrelated questions, as the paper's code does.
    """
    prompt, target, rephrase = record.text("prompt"), record.text("target", blank=True), record.text("rephrase")
    probes = [Probe("reliability", prompt, (target,)), Probe("generality", rephrase, (target,))]
    rome = [Probe("efficacy", prompt, (target,)), Probe("paraphrase", rephrase, (target,))]
    for question in record.parts("locality")[: 1 if first_locality_only else None]:
        accepted = question.answers("loc_ans")
        if accepted:
            probes.append(Probe("locality", question.text("loc"), accepted, "unrelated"))
            rome.append(Probe("neighborhood", question.text("loc"), accepted))
        else:
            dropped["locality probe with a blank answer"] += 1
    edit = Edit(prompt, target, record.text("subject"))
    return Case(case_id, (edit,), (*probes, Probe("fluency", prompt, ()), *rome))
