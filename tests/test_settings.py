"""The order of operations, as trace strings: "+a" edit, "?ab" test, "!" restore."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pytest

from kedit.cases import Case
from kedit.common.errors import InputError
from kedit.loop.settings import Step, blocks, incremental, mass, sequential, single

ABC = [Case(name, (), ()) for name in "abc"]


def names(cases: Iterable[Case]) -> str:
    return "".join(case.id for case in cases)


def trace(steps: Iterator[Step]) -> str:
    parts = []
    for step in steps:
        parts.append("+" + names(step.edit))
        if step.test:
            parts.append(f"?{names(step.test)}={step.T}")
        if step.restore:
            parts.append("!")
    return " ".join(parts)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (single(ABC), "+a ?a=1 ! +b ?b=1 ! +c ?c=1 !"),
        (sequential(ABC, 3), "+a +b +c ?abc=3"),
        (sequential(ABC, 2), "+a +b ?ab=2"),
        (sequential(ABC, "all"), "+a +b +c ?abc=3"),
        (sequential(ABC, 3, checkpoints=[1, 2, 9]), "+a ?a=1 +b ?ab=2 +c ?abc=3"),
        (sequential(ABC, 3, batch_size=2), "+ab +c ?abc=3"),
        (sequential(ABC, 3, batch_size=2, checkpoints=[2]), "+ab ?ab=2 +c ?abc=3"),
        (sequential(ABC, 9, short="cap"), "+a +b +c ?abc=3"),
        (sequential(ABC[:1], 1), "+a ?a=1"),
        (blocks(ABC, 1), "+a ?a=1 ! +b ?b=1 ! +c ?c=1 !"),
        (blocks(ABC, 2), "+a +b ?ab=2 ! +c ?c=2 !"),
        (blocks(ABC, 3, batch_size=2), "+ab +c ?abc=3 !"),
        (incremental(ABC, 3), "+a ?a=3 +b ?b=3 +c ?c=3"),
        (mass(ABC, 2), "+ab ?ab=2"),
    ],
)
def test_order(steps: Iterator[Step], expected: str) -> None:
    assert trace(steps) == expected


def test_blocks_of_one_are_single() -> None:
    assert list(blocks(ABC, 1)) == list(single(ABC))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: sequential(ABC, 4), r"T=4 .* 3 cases"),
        (lambda: blocks(ABC, 4), r"T=4 .* 3 cases"),
        (lambda: incremental(ABC, 4), r"T=4 .* 3 cases"),
        (lambda: mass(ABC, 4), r"T=4 .* 3 cases"),
        (lambda: sequential(ABC, 1), "setting=single"),
        (lambda: sequential(ABC, 0), "at least 1"),
        (lambda: single(ABC, 2), "restores after each edit"),
        (lambda: sequential(ABC, 3, batch_size=2, checkpoints=[1]), r"checkpoints=\[1\]"),
        (lambda: single([]), "no case"),
    ],
)
def test_refusals(make: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        list(make())  # type: ignore[operator]


ASKED = Case("asked", (), (), edited=False)


def test_cases_that_are_never_edited_are_asked_at_every_test() -> None:
    steps = list(sequential([ABC[0], ASKED, *ABC[1:]], "all", checkpoints=[2]))
    assert [[case.id for case in step.edit] for step in steps] == [["a"], ["b"], ["c"]]
    assert [[case.id for case in step.test] for step in steps] == [[], ["a", "b", "asked"], ["a", "b", "c", "asked"]]
    assert [step.T for step in steps] == [0, 2, 3]
    [step] = mass([ASKED, *ABC], "all")
    assert ([case.id for case in step.edit], step.T) == (["a", "b", "c"], 3)
    assert step.test[-1] is ASKED


@pytest.mark.parametrize("setting", [single, partial(blocks, T=2), partial(incremental, T=2)])
def test_settings_that_test_each_edit_refuse_cases_that_are_never_edited(setting: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"1 cases .*asked.* are never edited, .* choose setting=sequential or mass"):
        list(setting([*ABC, ASKED]))
