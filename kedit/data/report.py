"""What a data file holds, and what will bound its scores."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from kedit.cases import Case


def report(cases: Sequence[Case]) -> Iterator[str]:
    """Lines for a reader who is about to edit these cases one after another."""
    kinds = Counter((p.kind, p.group) for case in cases for p in case.probes)
    having = Counter(kind for case in cases for kind in {p.kind for p in case.probes})
    yield f"{len(cases)} cases"
    for (kind, group), count in sorted(kinds.items()):
        yield f"  {count:6d} {kind} {group}".rstrip()
    for kind, count in sorted(having.items()):
        yield f"  {count:6d} cases have {kind}"
    subjects = Counter(case.edits[0].subject for case in cases)
    shared = sum(n for n in subjects.values() if n > 1)
    prompts = {case.edits[0].prompt for case in cases}
    lost = len(overwritten(cases))
    yield f"{len(subjects)} distinct subjects; {shared} cases share theirs, at most {max(subjects.values())}"
    yield f"{len(prompts)} distinct prompts; {len(conflicts(cases))} of them are edited to different targets"
    yield (
        f"{lost} cases are overwritten by a later edit of their prompt: "
        f"after all edits at most {100 * (1 - lost / len(cases)):.1f} % can be exactly right"
    )
    yield f"{len(contradicted(cases))} locality probes ask what another case edits to another answer: not all can hold"


def conflicts(cases: Sequence[Case]) -> dict[str, set[str]]:
    """Prompts with more than one target."""
    targets: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        for edit in case.edits:
            targets[edit.prompt].add(edit.target_new)
    return {prompt: found for prompt, found in targets.items() if len(found) > 1}


def overwritten(cases: Sequence[Case]) -> list[Case]:
    """Cases whose prompt a later case edits to another target."""
    last = {edit.prompt: edit.target_new for case in cases for edit in case.edits}
    return [case for case in cases if any(last[edit.prompt] != edit.target_new for edit in case.edits)]


def contradicted(cases: Sequence[Case]) -> list[tuple[Case, str]]:
    """(case, prompt) of locality probes that another case edits to an answer they do not accept."""
    targets: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        for edit in case.edits:
            targets[edit.prompt.strip()].add(edit.target_new.strip())
    return [
        (case, probe.prompt)
        for case in cases
        for probe in case.probes
        if probe.kind == "locality"
        and targets.get(probe.prompt.strip(), set()) - {answer.strip() for answer in probe.answers}
    ]
