"""The order of edit, test and restore. Generators of steps: no model, no editor, testable with strings.

T is the number of edits in the model when a case is tested ("all": as many as there are cases).
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

from kedit.cases import Case
from kedit.common.errors import InputError
from kedit.common.options import Count, Several

Cases = Sequence[Case]
Horizon = Count | Literal["all"]
Short = Literal["error", "cap"]  # fewer cases than T: refuse, or run with the effective T


@dataclass(frozen=True, slots=True)
class Step:
    """Edit these cases together, then test those, then restore the unedited model (or not).

    `T` says to which T of a table the test belongs; a short last block counts as its block size.
    """

    edit: Cases
    test: Cases = ()
    restore: bool = False
    T: int = 0


def single(cases: Cases, T: Horizon = 1, *, short: Short = "error") -> Iterator[Step]:
    """Edit one, test it, restore: every case on its own. T is 1 by definition, so no data are too short for it."""
    if T != 1:
        raise InputError(
            f"T={T} with setting=single, which restores after each edit; drop T, or choose setting=blocks or sequential"
        )
    _some(cases)
    _all_edited(cases, "single")
    return (Step([case], [case], restore=True, T=1) for case in cases)


def sequential(
    cases: Cases, T: Horizon, *, batch_size: Count = 1, checkpoints: Several[Count] = (), short: Short = "error"
) -> Iterator[Step]:
    """Edit the first T cases, `batch_size` at a time, then test all T on the final model (KDPO §4; KEDAS Eq. 6), and
    the cases that are never edited.

    `checkpoints`: also test all edits so far at these numbers of edits; those above T are left out.
    """
    if T == 1 and len(cases) > 1:
        raise InputError(
            f"setting=sequential with T=1 tests only the first of {len(cases)} cases; use setting=single to test each "
            "case (setting=blocks in a grid over T), or dataset.limit=1"
        )
    chosen, others = first_edits(_edited(cases), T, short), [case for case in cases if not case.edited]
    ends = _ends(chosen, batch_size)
    made = [0, *accumulate(map(_size, chosen))]  # edits, by the number of cases
    tests = {bisect_right(made, at) - 1: at for at in checkpoints if at < made[-1]} | {len(chosen): made[-1]}
    missed = sorted(at for end, at in tests.items() if end not in (0, *ends))
    if missed:
        raise InputError(
            f"setting.checkpoints={missed} are no multiples of setting.batch_size={batch_size}; give multiples of it"
        )
    return (
        Step(chosen[end - n : end], [*chosen[:end], *others], T=made[end])
        if end in tests
        else Step(chosen[end - n : end])
        for end, n in _sized(ends)
    )


def blocks(cases: Cases, T: Horizon, *, batch_size: Count = 1, short: Short = "error") -> Iterator[Step]:
    """Consecutive blocks of T, each as sequential, restored in between; a short last block is kept. T=1 equals single.

    OVERTONE's continual editing, as WISE's authors describe the protocol it descends from.
    """
    _all_edited(cases, "blocks")
    first_edits(cases, T, short)
    size = min(edit_count(cases), T if isinstance(T, int) else edit_count(cases))
    for stop, n_cases in _sized(_ends(cases, size)):
        block = cases[stop - n_cases : stop]
        for end, n in _sized(_ends(block, batch_size)):
            last = end == len(block)
            yield Step(block[end - n : end], block, restore=True, T=size) if last else Step(block[end - n : end])


def incremental(cases: Cases, T: Horizon, *, short: Short = "error") -> Iterator[Step]:
    """Edit case i, test case i at once, never restore (KEDAS §5.4; the older meaning of "sequential")."""
    _all_edited(cases, "incremental")
    chosen = first_edits(cases, T, short)
    return (Step([case], [case], T=edit_count(chosen)) for case in chosen)


def mass(cases: Cases, T: Horizon, *, short: Short = "error") -> Iterator[Step]:
    """The first T cases in one edit, then test all T (standard fine-tuning, MEMIT)."""
    chosen, others = first_edits(_edited(cases), T, short), [case for case in cases if not case.edited]
    return iter([Step(chosen, [*chosen, *others], T=edit_count(chosen))])


def first_edits(cases: Cases, T: Horizon, short: Short) -> Cases:
    """The first cases with T edits; if a case has several, whole cases as far as they fit T."""
    _some(cases)
    if short not in get_args(Short):
        raise InputError(f"setting.short={short}: choose from {', '.join(get_args(Short))}")
    if T == "all":
        return cases
    if not isinstance(T, int) or T < 1:
        raise InputError(f"T={T!r}: give a number of edits of at least 1, or all")
    there = edit_count(cases)
    if there < T and short == "error":
        held = f"{there} cases" if there == len(cases) else f"{there} edits ({len(cases)} cases)"
        raise InputError(
            f"T={T} is more than the dataset's {held}; lower T, or set setting.short=cap to use all of them"
        )
    made = list(accumulate(map(_size, cases)))
    if made[0] > T:
        raise InputError(
            f"T={T}: the first case has {made[0]} edits, and a case is never cut; give at least {made[0]}, or choose "
            "setting=single"
        )
    return cases[: bisect_right(made, T)]


def edit_count(cases: Cases) -> int:
    """T counts edits; a case may have several."""
    return sum(map(_size, cases))


def _size(case: Case) -> int:
    return max(1, len(case.edits))


def _some(cases: Cases) -> None:
    if not cases:
        raise InputError("the dataset has no case to edit; check dataset.limit, and what was dropped")


def _edited(cases: Cases) -> Cases:
    return [case for case in cases if case.edited]


def _all_edited(cases: Cases, setting: str) -> None:
    if unedited := [case.id for case in cases if not case.edited]:
        raise InputError(
            f"setting={setting}: {len(unedited)} cases ({unedited[0]}, ...) are never edited, and are asked when all "
            "others are; choose setting=sequential or mass, or dataset.parse.split=null"
        )


def _ends(cases: Cases, batch_size: int) -> list[int]:
    """The number of cases at the end of each batch of at most `batch_size` edits (3, 6, 7 for 7 cases of one edit in
    batches of 3); a case with more edits has a batch of its own."""
    if batch_size < 1:
        raise InputError(f"setting.batch_size={batch_size}: give at least 1")
    ends, held = [], 0
    for i, case in enumerate(cases):
        if held and held + _size(case) > batch_size:
            ends.append(i)
            held = 0
        held += _size(case)
    return [*ends, len(cases)]


def _sized(ends: list[int]) -> Iterator[tuple[int, int]]:
    """Yield (end, size) of each step."""
    return ((end, end - start) for start, end in zip([0, *ends], ends, strict=False))
