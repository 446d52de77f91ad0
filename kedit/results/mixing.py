"""What cells must share to stand in one table; a table refuses the rest in one sentence, or is told to allow it."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kedit.common.errors import InputError
from kedit.results.abilities import described
from kedit.results.cells import Cell
from kedit.results.samples import asked_T

# options of eval: these ask for more rows, and change none that two cells share
MORE_ROWS = ("scoring", "each_edit", "each_step", "measures")
STRICT = ("strict", "judges")  # these too, but two profiles do not make the same rows


@dataclass(frozen=True)
class Rule:
    """`what` must be one for all cells that have the same `within`."""

    what: Callable[[Cell], Any]
    within: Callable[[Cell], Any]
    said: str


def _setting(cell: Cell) -> str:
    return "single" if cell.meta["setting"] == "blocks" and asked_T(cell) == 1 else cell.meta["setting"]


def _scoring(cell: Cell) -> Mapping[str, Any]:
    return {name: value for name, value in cell.config.get("eval", {}).items() if name not in (*MORE_ROWS, *STRICT)}


def _strictness(cell: Cell) -> Mapping[str, Any]:
    return {name: cell.config.get("eval", {}).get(name) for name in STRICT}


def _strict_of(cell: Cell) -> tuple[Any, ...]:
    return cell.meta["model"], cell.meta["dataset"], bool(cell.config.get("eval", {}).get("strict"))


def _benchmarks(cell: Cell) -> Mapping[str, Any]:
    return described([cell])


def _place(cell: Cell) -> tuple[Any, ...]:
    return cell.meta["model"], cell.meta["dataset"], _setting(cell), asked_T(cell)


RULES = {
    "settings": Rule(_setting, lambda cell: asked_T(cell), "settings"),
    "scoring": Rule(_scoring, lambda cell: (cell.meta["model"], cell.meta["dataset"]), "ways of scoring"),
    "strictness": Rule(_strictness, _strict_of, "profiles of strict evaluation"),
    "benchmarks": Rule(_benchmarks, lambda cell: bool(_benchmarks(cell)), "benchmarks"),
    "orders": Rule(lambda cell: cell.meta["order_seed"], lambda cell: None, "order seeds"),
    "versions": Rule(lambda cell: cell.meta["versions"], lambda cell: None, "library versions"),
    "options": Rule(lambda cell: cell.meta["overrides"], _place, "options"),
    "data": Rule(
        lambda cell: cell.meta["data"]["sha256"], lambda cell: (*_place(cell), cell.meta["seed"]), "data files"
    ),
    "models": Rule(lambda cell: cell.meta["model_is"]["identity"], lambda cell: cell.meta["model"], "weights"),
}


def refuse_mixed(cells: Sequence[Cell], allowed: Collection[str] = ()) -> None:
    """Raises InputError naming two cells that may not stand together, and what differs."""
    for name, rule in RULES.items():
        if name in allowed or "all" in allowed:
            continue
        for one, other in _pairs(cells, rule):
            difference = _difference(rule.what(one), rule.what(other))
            raise InputError(
                f"{one.directory} and {other.directory} have different {rule.said} ({difference}); a table does not "
                f"mix them: run one of the two again, or give --mix {name}"
            )


def mixed(cells: Sequence[Cell]) -> list[str]:
    """What these cells do mix, for the caption of a table that was told to allow it."""
    return [rule.said for rule in RULES.values() if any(_pairs(cells, rule))]


def _pairs(cells: Sequence[Cell], rule: Rule) -> Iterator[tuple[Cell, Cell]]:
    first: dict[Any, Cell] = {}
    for cell in cells:
        before = first.setdefault(rule.within(cell), cell)
        if rule.what(before) != rule.what(cell):
            yield before, cell


def _difference(one: Any, other: Any) -> str:
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return f"{one!r} and {other!r}"
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return ", ".join(f"{key}: {one.get(key)!r} and {other.get(key)!r}" for key in keys)
