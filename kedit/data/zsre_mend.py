"""ZsRE in MEND's form, with or without the GPT-4 portability questions (OVERTONE's ZsRE)."""

from collections import Counter
from typing import Literal, get_args

from kedit.cases import Case, Edit, Probe
from kedit.common.errors import InputError
from kedit.data.records import Record

Target = Literal["alt", "answers"]


def recognises(record: Record) -> bool:
    """By the field that is there, whatever it holds."""
    return "src" in record.data


def dataset_of(record: Record) -> str:
    """The choice of conf/dataset that reads a file of such records: portability questions follow from alt."""
    return "zsre_mend_portability" if record.data.get("portability") else "zsre_mend"


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
    unrelated = record.answers("loc_ans")
    if unrelated:
        probes.append(Probe("locality", record.text("loc"), unrelated, "neighborhood"))
        rome.append(Probe("neighborhood", record.text("loc") + "?", unrelated))
    else:
        dropped["locality probe with a blank answer"] += 1
    probes += _portability(record, target, dropped)
    edit = Edit(prompt, new, record.text("subject"), old)
    return Case(case_id, (edit,), (*probes, Probe("fluency", prompt, ()), *rome))


def _objects(record: Record, target: Target) -> tuple[str, str | None]:
    """(new, old). An edit to the true answer replaces none that the dataset states."""
    true = record.optional_answers("answers")
    if target == "alt":
        return record.text("alt", blank=True), true[0] if true else None
    if not true:
        raise record.error("answers", "holds no answer; give one, or set dataset.parse.target=alt")
    return true[0], None


def _portability(record: Record, target: Target, dropped: Counter[str]) -> list[Probe]:
    hop = record.part("portability")
    if not hop.data or target != "alt":
        return []
    accepted = hop.answers("New Answer")
    if accepted:
        return [Probe("portability", hop.text("New Question"), accepted, "one_hop")]
    dropped["portability probe with a blank answer"] += 1
    return []
