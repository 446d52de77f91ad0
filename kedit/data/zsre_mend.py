"""ZsRE in MEND's form, with or without the GPT-4 portability questions (OVERTONE's ZsRE)."""

from collections import Counter
from typing import Literal, get_args

from kedit.cases import Case, Edit, Probe
from kedit.common.errors import InputError
from kedit.data.records import Record, answers

Target = Literal["alt", "answers"]


def recognises(record: Record) -> bool:
    return record.has("src") and record.has("alt")


def parse(record: Record, case_id: str, dropped: Counter[str], *, target: Target = "alt") -> Case:
    """The edit is src -> alt, a counterfactual; `target` "answers": src -> the true answer, as ROME and MEMIT edit.

    `loc` keeps its literal "nq question: ", as the references do; ROME ends it with a question mark, and no object
    competes with its answer. Portability follows from alt and is asked only of that.
    """
    if target not in get_args(Target):
        raise InputError(f"dataset.parse.target={target}: choose from {', '.join(get_args(Target))}")
    prompt, rephrase = record.text("src"), record.text("rephrase")
    new, old = _objects(record, target)
    probes = [Probe("reliability", prompt, (new,)), Probe("generality", rephrase, (new,))]
    rome = [Probe("efficacy", prompt, (new,)), Probe("paraphrase", rephrase, (new,))]
    unrelated = answers(record.data.get("loc_ans"), record, "loc_ans")
    if unrelated:
        probes.append(Probe("locality", record.text("loc"), unrelated, "neighborhood"))
        rome.append(Probe("neighborhood", record.text("loc") + "?", unrelated))
    else:
        dropped["locality probe with a blank answer"] += 1
    hop = record.part("portability")
    if hop.data and target == "alt":
        probes.append(Probe("portability", hop.text("New Question"), (hop.text("New Answer"),), "one_hop"))
    edit = Edit(prompt, new, record.text("subject"), old)
    return Case(case_id, (edit,), (*probes, Probe("fluency", prompt, ()), *rome))


def _objects(record: Record, target: Target) -> tuple[str, str | None]:
    """(new, old). An edit to the true answer replaces none that the dataset states."""
    true = answers(record.data.get("answers", ""), record, "answers")
    if target == "alt":
        return record.text("alt", blank=True), true[0] if true else None
    if not true:
        raise record.error("answers", "holds no answer; give one, or set dataset.parse.target=alt")
    return true[0], None
