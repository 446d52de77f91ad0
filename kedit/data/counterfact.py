"""CounterFact in ROME's form (requested_rewrite, ...) and in the flat form of EasyEdit's files.

In the flat files counterfact-edit, -train and -val, `rephrase_prompt` is mostly one of ROME's *generation* prompts,
not a paraphrase: generality measured there is not ROME's. ROME's own form has true paraphrases.
"""

from collections import Counter

from kedit.cases import Case, Edit, Probe
from kedit.data.records import Record


def recognises(record: Record) -> bool:
    return isinstance(record.data.get("requested_rewrite"), dict) or record.has("locality_ground_truth")


def parse(record: Record, case_id: str, dropped: Counter[str]) -> Case:
    return _rome(record, case_id) if record.has("requested_rewrite") else _flat(record, case_id)


def _rome(record: Record, case_id: str) -> Case:
    """Paraphrases are generality, neighbours (which share the old object) locality, generation prompts fluency."""
    rewrite = record.part("requested_rewrite")
    subject, template = rewrite.text("subject"), rewrite.text("prompt")
    if template.count("{}") != 1:
        raise rewrite.error("prompt", f"is {template!r}; it needs one {{}} where the subject stands")
    new, true = (rewrite.part(name).text("str", blank=name == "target_new") for name in ("target_new", "target_true"))
    prompt = template.format(subject)
    probes = [
        Probe("reliability", prompt, (new,)),
        *(Probe("generality", text, (new,)) for text in record.texts("paraphrase_prompts")),
        *(Probe("locality", text, (true,), "neighborhood") for text in record.texts("neighborhood_prompts")),
        *(Probe("fluency", text, ()) for text in record.texts("generation_prompts")),
    ]
    return Case(case_id, (Edit(prompt, new, subject),), tuple(probes))


def _flat(record: Record, case_id: str) -> Case:
    prompt, target = record.text("prompt"), record.text("target_new", blank=True)
    probes = [
        Probe("reliability", prompt, (target,)),
        Probe("generality", record.text("rephrase_prompt"), (target,)),
        Probe("locality", record.text("locality_prompt"), (record.text("locality_ground_truth"),), "neighborhood"),
        Probe("fluency", prompt, ()),
    ]
    return Case(case_id, (Edit(prompt, target, record.text("subject")),), tuple(probes))
