"""MQuAKE (Zhong et al. 2023): edits with questions that need several facts. Reads the files CF, CF-3k, CF-3k-v2, T,
2002, hard, AKEW's and Remastered's.

A case has 1 to 4 edits and a chain of 2 to 4 facts, some of them edited. Probes: each edit's own prompt (reliability),
the question of each edited fact (one_hop), the question about the whole chain in three wordings, of which any counts
(multi_hop), and every fact of the new chain, of which all must be right (all_hops: the paper's instance accuracy).
"""

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from kedit.cases import Case, Edit, Frame, Kind, Probe
from kedit.common.options import Count
from kedit.data.records import Record

Prompts = Literal["bare", "overtone"]
EDITED = ("edited", "train_edited", "test_edited")  # Remastered's labels; train and test are CF-6334's
UNEDITED = ("unedited", "test_unedited")

# OVERTONE, App. B.1, describes these prompts and prints their example; the wording is kedit's
_ONE = """Answer the question directly and briefly. Write the answer as "Final answer: ...".

Question: Who is the spouse of the head of state of the United States of America?
Answer: Final answer: Jill Biden

Question: """
_MANY = """Break the question into subquestions, answer them step by step, and write the answer as "Final answer: ...".

Question: Who is the spouse of the head of state of the United States of America?
Subquestion: Who is the head of state of the United States of America?
Generated answer: Joe Biden
Subquestion: Who is the spouse of Joe Biden?
Generated answer: Jill Biden
Final answer: Jill Biden

Question: """
FRAMES: dict[Prompts, tuple[Frame | None, Frame | None]] = {  # (for one hop, for several)
    "bare": (None, None),
    "overtone": (Frame(_ONE, "\nAnswer:", 30, contains=True), Frame(_MANY, "\n", 200, contains=True)),
}


def recognises(record: Record) -> bool:
    """By its list of rewrites and its chain."""
    return isinstance(record.data.get("requested_rewrite"), list) and "new_single_hops" in record.data


def dataset_of(record: Record) -> str:
    """The choice of conf/dataset that reads a file of such records."""
    return "mquake"


def parse(
    record: Record,
    case_id: str,
    dropped: Counter[str],
    *,
    hops: Count | None = None,
    prompts: Prompts = "bare",
    split: Count | None = None,
) -> Case | None:
    """One record; None, counted, if its chain has not `hops` facts (None: any number). `prompts`: how one hop and
    several are asked. `split`: Remastered's number of cases that are edited together; the others are only asked
    (None: all are edited)."""
    chain = record.parts("new_single_hops")
    if not chain:
        raise record.error("new_single_hops", "holds no fact; give the chain of the new answer")
    if hops is not None and len(chain) != hops:
        dropped[f"chain of {len(chain)} facts"] += 1
        return None
    rewrites = record.parts("requested_rewrite")
    if not rewrites:
        raise record.error("requested_rewrite", "holds no edit; give at least one")
    edits = tuple(_edit(rewrite) for rewrite in rewrites)
    one, many = FRAMES[prompts]
    edited = split is None or _edited(record, str(split))
    if edited is None:
        dropped[f"case that split {split} leaves out"] += 1
        return None
    if not edited:
        old = tuple(_asked(record, "answer", "unedited_multi_hop", len(chain), many))
        return Case(case_id, edits, old, edited=False)
    probes = [
        *(Probe("reliability", edit.prompt, (edit.target_new,)) for edit in edits),
        *_one_hop(rewrites, edits, one),
        *_asked(record, "new_answer", "multi_hop", len(chain), many),
        *_all_hops(chain),
    ]
    return Case(case_id, edits, tuple(probes))


def _edit(rewrite: Record) -> Edit:
    """Remastered writes targets flat."""
    template, subject = rewrite.text("prompt"), rewrite.text("subject")
    if template.count("{}") != 1:
        raise rewrite.error("prompt", f"is {template!r}; it needs one {{}} in the place of the subject")
    new, true = (
        rewrite.text(f"{name}_str", blank=name == "target_new")
        if f"{name}_str" in rewrite.data
        else rewrite.part(name).text("str", blank=name == "target_new")
        for name in ("target_new", "target_true")
    )
    return Edit(template.replace("{}", subject), new, subject, true)


def _one_hop(rewrites: list[Record], edits: tuple[Edit, ...], frame: Frame | None) -> Iterator[Probe]:
    """The question of each edited fact."""
    for rewrite, edit in zip(rewrites, edits, strict=True):
        yield Probe("one_hop", rewrite.text("question"), (edit.target_new,), frame=frame)


def _edited(record: Record, split: str) -> bool | None:
    """Whether the case is one of those that are edited together; None: it has no part in this split."""
    splits = record.part("split").data
    if split not in splits:
        there = f"to one of {', '.join(splits)}, or " if splits else ""
        raise record.error("split", f"has no {split!r}; set dataset.parse.split {there}to null")
    labels = splits[split] or []
    if any(label in EDITED for label in labels):
        return True
    return False if any(label in UNEDITED for label in labels) else None


def _asked(record: Record, answer: str, kind: Kind, hops: int, frame: Frame | None) -> Iterator[Probe]:
    """The question about the chain, in every wording."""
    wordings = record.texts("questions")
    if not wordings:
        raise record.error("questions", "holds no question; give at least one wording")
    accepted = _accepted(record, answer)
    for text in wordings:
        yield Probe(kind, text, accepted, f"{hops}_hops", fold="any", frame=frame)


def _all_hops(chain: list[Record]) -> Iterator[Probe]:
    for hop in chain:
        yield Probe("all_hops", hop.text("cloze"), _accepted(hop, "answer"), fold="all")


def _accepted(record: Record, name: str) -> tuple[str, ...]:
    """The answer and its aliases, each once."""
    aliases = [alias for alias in record.get(f"{name}_alias") or [] if isinstance(alias, str) and alias.strip()]
    return tuple(dict.fromkeys([record.text(name), *aliases]))
