"""Batches that fit into memory: formed by length within a budget that halves itself when memory runs out."""

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass
class Budget:
    """How much a batch may hold: its rows times the size of its largest one."""

    limit: int
    unit: str  # what sizes count, in a message
    most_rows: int = 1 << 30

    def rows(self, sizes: Sequence[int]) -> int:
        """How many of the first `sizes` (ascending) fit one batch; at least one."""
        count = 1
        while count < min(len(sizes), self.most_rows) and sizes[count] * (count + 1) <= self.limit:
            count += 1
        return count

    def halve(self, used: int) -> None:
        self.limit = max(1, used // 2)
        log.warning("out of memory: batches now hold %.4g %s", self.limit, self.unit)


def in_batches(
    sizes: Sequence[int], run: Callable[[list[int]], list[Result]], budget: Budget, variants: Sequence[int] = ()
) -> list[Result]:
    """`run` on batches of indices, smallest first, each within the budget. Returns the results in the given order.

    `variants`: of the model that each is read by; in a batch those of one stand together.

    When memory runs out the budget is halved for good and the batch is formed again; a single row that does not fit
    raises what torch raised.
    """
    results: dict[int, Result] = {}
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    while order:
        now = order[: budget.rows([sizes[i] for i in order])]
        largest = sizes[now[-1]]
        if variants:
            now = sorted(now, key=lambda i: variants[i])
        done = run(now) if len(now) == 1 else unless_out_of_memory(partial(run, now))
        if done is None:
            budget.halve(len(now) * largest)
            continue
        results |= zip(now, done, strict=True)
        order = order[len(now) :]
    return [results[i] for i in range(len(sizes))]


def unless_out_of_memory(run: Callable[[], list[Result]]) -> list[Result] | None:
    """None if memory ran out. What the run held is free when this returns: no traceback refers to it."""
    try:
        return run()
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
    free_memory()
    return None


def free_memory() -> None:
    """Return what nothing refers to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
