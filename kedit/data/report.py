"""What a data file holds, and what limits its scores."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches

from kedit.cases import Case


def report(cases: Sequence[Case]) -> Iterator[str]:
    """Lines for a reader who is about to edit these cases one after another."""
    kinds = Counter((p.kind, p.group) for case in cases for p in case.probes)
    having = Counter(kind for case in cases for kind in {p.kind for p in case.probes})
    for (kind, group), count in sorted(kinds.items()):
        yield f"  {count:6d} {kind} {group}".rstrip()
    for kind, count in sorted(having.items()):
        yield f"  {count:6d} cases have {kind}"
    asked, cases = len(cases), [case for case in cases if case.edited]
    if len(cases) < asked:
        yield f"{asked - len(cases)} cases are never edited, only asked; the rest is about the other {len(cases)}"
    yield from _subjects(cases)
    yield from _old_answers(cases)
    yield from _edits(cases)
    prompts = {edit.prompt for case in cases for edit in case.edits}
    lost = len(overwritten(cases))
    yield f"{len(prompts)} distinct prompts; {len(conflicts(cases))} of them are edited to different targets"
    yield (
        f"{lost} cases are overwritten by a later edit of their prompt: "
        f"after all edits at most {100 * (1 - lost / max(1, len(cases))):.1f} % can be exactly right"
    )
    yield f"{len(contradicted(cases))} locality probes ask what another case edits to another answer: not all can hold"
    size, longest = max((len(text), case.id) for case in cases for text in _texts(case))
    yield f"the longest prompt with its answer has {size} characters ({longest})"


def _edits(cases: Sequence[Case]) -> Iterator[str]:
    """If some cases have several."""
    edits = [(edit.prompt, edit.target_new) for case in cases for edit in case.edits]
    if len(edits) > len(cases):
        most = max(len(case.edits) for case in cases)
        distinct = f"{len(set(edits))} distinct ones (subject, relation, new target)"
        yield f"{len(edits)} edits, at most {most} a case; {distinct}"


def _texts(case: Case) -> Iterator[str]:
    """What a model will read of a case, as far as the data says."""
    yield from (f"{edit.prompt} {edit.target_new}" for edit in case.edits)
    yield from (f"{probe.prompt} {answer}" for probe in case.probes for answer in probe.answers[:1])


def _subjects(cases: Sequence[Case]) -> Iterator[str]:
    subjects = Counter(subject for case in cases for subject in {edit.subject for edit in case.edits})
    shared = [n for n in subjects.values() if n > 1]
    yield f"{len(subjects)} distinct subjects; {sum(shared)} cases share theirs, at most {max(shared, default=1)}"
    without = [case.id for case in cases if any((edit.subject or "\0") not in edit.prompt for edit in case.edits)]
    if without:
        yield (
            f"warning: {len(without)} cases ({without[0]}, ...) have a prompt without their subject: editors that look "
            "for the subject there (ROME, MEMIT, ...) refuse them"
        )


def _old_answers(cases: Sequence[Case]) -> Iterator[str]:
    """Without an old answer no object competes with the new one."""
    known = sum(all(edit.target_old for edit in case.edits) for case in cases)
    rome = any(probe.kind == "efficacy" for case in cases for probe in case.probes)
    means = "; without one, efficacy, paraphrase and neighborhood are token match" if rome else ""
    yield f"{known} of {len(cases)} cases state an old answer{means}"


def unused_lines(unused: Mapping[str, int], absent: Collection[str]) -> Iterator[str]:
    """A warning about fields that are not used. `absent`: fields that were looked for, and that no record has."""
    named = []
    for name, count in unused.items():
        alike = get_close_matches(name, absent, 1, 0.8)
        named.append(f"{name} ({count} records{f'; is {alike[0]} meant?' if alike else ''})")
    if named:
        yield f"warning: fields that are not used: {', '.join(named)}"


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
