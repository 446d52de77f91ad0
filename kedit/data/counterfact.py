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
    return isinstance(record.data.get("requested_rewrite"), dict) or record.has("locality_ground_truth")


def parse(record: Record, case_id: str, dropped: Counter[str]) -> Case:
    return _rome(record, case_id) if record.has("requested_rewrite") else _flat(record, case_id)


def _rome(record: Record, case_id: str) -> Case:
    """Paraphrases are also generality, neighbours (which share the true object) also locality, generation prompts
    fluency."""
    rewrite = record.part("requested_rewrite")
    subject, template = rewrite.text("subject"), rewrite.text("prompt")
    if template.count("{}") != 1:
        raise rewrite.error("prompt", f"is {template!r}; it needs one {{}} where the subject stands")
    new, true = (rewrite.part(name).text("str", blank=name == "target_new") for name in ("target_new", "target_true"))
    prompt = template.format(subject)
    paraphrases, neighbors = record.texts("paraphrase_prompts"), record.texts("neighborhood_prompts")
    relation, target_id = rewrite.data.get("relation_id"), rewrite.part("target_new").data.get("id")
    topic = f"{relation}/{target_id}" if relation and target_id else ""
    probes = [
        Probe("reliability", prompt, (new,)),
        *(Probe("generality", text, (new,)) for text in paraphrases),
        *(Probe("locality", text, (true,), "neighborhood") for text in neighbors),
        *(Probe("fluency", text, (), topic=topic) for text in record.texts("generation_prompts")),
        *_new_against_true(prompt, paraphrases, new, true),
        *(Probe("neighborhood", text, (true,), competing_answer=new) for text in neighbors),
    ]
    return Case(case_id, (Edit(prompt, new, subject, true),), tuple(probes))


def _flat(record: Record, case_id: str) -> Case:
    prompt, new = record.text("prompt"), record.text("target_new", blank=True)
    rephrase, neighbor = record.text("rephrase_prompt"), record.text("locality_prompt")
    shared = record.text("locality_ground_truth")
    true = record.text("ground_truth", "locality_ground_truth")  # equal: neighbours share the object
    probes = [
        Probe("reliability", prompt, (new,)),
        Probe("generality", rephrase, (new,)),
        Probe("locality", neighbor, (shared,), "neighborhood"),
        Probe("fluency", prompt, ()),
        *_new_against_true(prompt, [rephrase], new, true),
        Probe("neighborhood", neighbor, (shared,), competing_answer=new),
    ]
    return Case(case_id, (Edit(prompt, new, record.text("subject"), true),), tuple(probes))


def _new_against_true(prompt: str, paraphrases: Sequence[str], new: str, true: str) -> list[Probe]:
    """ROME's efficacy and paraphrases; among neighbours the true object competes with the new one."""
    return [
        Probe("efficacy", prompt, (new,), competing_answer=true),
        *(Probe("paraphrase", text, (new,), competing_answer=true) for text in paraphrases),
    ]
