"""Episodes: consecutive steps in one model, up to a restore. They do not depend on each other, so that groups of them
can run side by side (DESIGN §12)."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from kedit.common.errors import InputError
from kedit.loop.in_memory_journal import InMemoryJournal
from kedit.loop.settings import Step

log = logging.getLogger(__name__)

Parallel = int | Literal["auto"]


@dataclass(eq=False)
class Episode:
    """Steps with their numbers, and how much of them has been edited into their model."""

    steps: Sequence[tuple[int, Step]]
    edits: int = 0
    cases: int = 0

    def begin(self) -> None:
        """From its first step on, also after a group that it was in did not fit."""
        self.edits = self.cases = 0

    def count(self, step: Step) -> None:
        """The step's edits are made now."""
        self.edits += sum(len(case.edits) for case in step.edit)
        self.cases += len(step.edit)

    @property
    def first(self) -> int:
        return self.steps[0][0]

    @property
    def last(self) -> int:
        return self.steps[-1][0]

    @property
    def fits_a_group(self) -> bool:
        """Is the model restored at its end, and tested only then? A test of a model that stays edited also measures the
        whole model, which is done for one model at a time."""
        tested_before = any(step.test for _, step in self.steps[:-1])
        return self.steps[-1][1].restore and not tested_before


def episodes(steps: Iterable[Step]) -> list[Episode]:
    """The steps of a run, numbered from 1."""
    found: list[list[tuple[int, Step]]] = [[]]
    for number, step in enumerate(steps, 1):
        found[-1].append((number, step))
        if step.restore:
            found.append([])
    return [Episode(some) for some in found if some]


class GroupSizes:
    """How many episodes run side by side.

    A number is taken as it is, as long as memory suffices. "auto" is what fits: the first episode runs alone, and a
    group then takes at most as long as what a kill may lose. Every decision is kept in meta.json, with the step from
    which it holds, so that a continued run has the same groups.
    """

    def __init__(self, wanted: Parallel, most: int, journal: InMemoryJournal):
        if wanted != "auto" and not (isinstance(wanted, int) and wanted >= 1):
            raise InputError(f"parallel={wanted}: give a number of edits that are made side by side, or auto")
        self.wanted, self.most, self.journal = wanted, most, journal

    def group(self, waiting: Sequence[Episode], done: int) -> list[Episode]:
        """The next episodes; one that was interrupted, or that does not fit a group, is continued alone."""
        first = waiting[0]
        if first.first <= done or not first.fits_a_group:
            return [first]
        return list(takewhile(lambda episode: episode.fits_a_group, waiting[: self.at(first.first)]))

    def at(self, step: int) -> int:
        """The size of a group that begins with this step."""
        known = [size for start, size in sorted(self.journal.group_sizes.items()) if start <= step]
        if known:
            return known[-1]
        return 1 if self.wanted == "auto" else min(self.wanted, self.most)

    def took(self, seconds: float, group: Sequence[Episode]) -> None:
        """A group has run."""
        if self.wanted == "auto" and not self.journal.group_sizes and self.most > 1:
            fits = int(self.journal.every_s / max(seconds, 1e-9)) if self.journal.every_s else 1
            self.journal.keep_group_size(group[-1].last + 1, max(1, min(self.most, fits)))

    def halve(self, group: Sequence[Episode]) -> None:
        """Memory did not suffice for this group."""
        size = max(1, len(group) // 2)
        log.warning("out of memory: %d episodes now run side by side", size)
        self.journal.keep_group_size(group[0].first, size)
