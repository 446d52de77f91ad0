"""CounterFact in ROME's form (requested_rewrite, ...) and in the flat form of EasyEdit's files.

Every record is asked in two ways: as EasyEdit asks (generality, locality), and as ROME does (efficacy, paraphrase,
neighborhood), where the new and the true object compete.

In the flat files counterfact-edit, -train and -val, `rephrase_prompt` is mostly one of ROME's *generation* prompts,
not a paraphrase: generality and paraphrase measured there are not ROME's. ROME's own form has true paraphrases.
"""

from collections import Counter
from collections.abc import Sequence

from kedit.cases import Case, Edit, Probe
from kedit.data.records import Record


def recognises(record: Record) -> bool:
    """By the fields that are there, whatever they hold. A list of rewrites is MQuAKE's form."""
    rewrite = record.data.get("requested_rewrite", [])
    return not isinstance(rewrite, list) or _has_any(record, "locality_prompt", "locality_ground_truth")


def dataset_of(record: Record) -> str:
    """The choice of conf/dataset that reads a file of such records."""
    return "counterfact"


def parse(record: Record, case_id: str, dropped: Counter[str]) -> Case:
    """One record of either form."""
    flat = "requested_rewrite" not in record.data and _has_any(record, "prompt", "target_new", "locality_prompt")
    return _flat(record, case_id, dropped) if flat else _rome(record, case_id)


def _has_any(record: Record, *names: str) -> bool:
    return any(name in record.data for name in names)


def _rome(record: Record, case_id: str) -> Case:
    """Paraphrases are also generality, neighbours (which share the true object) also locality, generation prompts
    fluency."""
    rewrite = record.part("requested_rewrite")
    subject, template = rewrite.text("subject"), rewrite.text("prompt")
    if template.count("{}") != 1:
        raise rewrite.error("prompt", f"is {template!r}; it needs one {{}} in the place of the subject")
    new, true = (rewrite.part(name).text("str", blank=name == "target_new") for name in ("target_new", "target_true"))
    prompt = template.replace("{}", subject)
    paraphrases, neighbors = record.texts("paraphrase_prompts"), record.texts("neighborhood_prompts")
    relation, target_id = rewrite.get("relation_id"), rewrite.part("target_new").get("id")
    topic = f"{relation}/{target_id}" if relation and target_id else ""
    probes = [
        Probe("reliability", prompt, (new,)),
        *(Probe("generality", text, (new,)) for text in paraphrases),
        *(Probe("locality", text, (true,), "neighborhood") for text in neighbors),
        *(Probe("fluency", text, (), topic=topic) for text in record.texts("generation_prompts")),
        *_new_against_old(prompt, paraphrases, new, true),
        *(Probe("neighborhood", text, (true,), competing_answer=new) for text in neighbors),
    ]
    return Case(case_id, (Edit(prompt, new, subject, true),), tuple(probes))


def _flat(record: Record, case_id: str, dropped: Counter[str]) -> Case:
    """A record without `ground_truth` (WikiBigEdit's form) states no old answer, and its neighbour need not share one:
    no object competes, and all three kinds of ROME are token match. `locality_ground_truth` answers the neighbour's
    question and nothing else."""
    prompt, new = record.text("prompt"), record.text("target_new", blank=True)
    rephrase, neighbor = record.text("rephrase_prompt"), record.text("locality_prompt")
    old, shared = _first(record.optional_answers("ground_truth")), record.answers("locality_ground_truth")
    probes = [Probe("reliability", prompt, (new,)), Probe("generality", rephrase, (new,))]
    if shared:
        probes.append(Probe("locality", neighbor, shared, "neighborhood"))
    else:
        dropped["locality probe with a blank answer"] += 1
    probes += [Probe("fluency", prompt, ()), *_new_against_old(prompt, [rephrase], new, old)]
    if shared:
        probes.append(Probe("neighborhood", neighbor, shared, competing_answer=new if old else None))
    return Case(case_id, (Edit(prompt, new, record.text("subject"), old),), tuple(probes))


def _first(answers: Sequence[str]) -> str | None:
    return answers[0] if answers else None


def _new_against_old(prompt: str, paraphrases: Sequence[str], new: str, old: str | None) -> list[Probe]:
    """ROME's efficacy and paraphrases; among neighbours the true object competes with the new one."""
    return [
        Probe("efficacy", prompt, (new,), competing_answer=old),
        *(Probe("paraphrase", text, (new,), competing_answer=old) for text in paraphrases),
    ]
