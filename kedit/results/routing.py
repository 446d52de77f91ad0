"""What an editor with a memory recalled for the questions of a test, per kind of probe: from the routes in the rows.

A question counts once, however many ways it was scored in. All numbers but N are per cent:

N                 questions
recall@k          of questions about the case's edit: a stored string of it is among those retrieved
recall@1          the same: the nearest string is one of it
filter recall     of those where one was retrieved: one was accepted
filter precision  of the strings that were accepted: those of the case's own edit, in a question about it. On the line
                  "all" of all kinds' strings: one that is accepted for a question about something else is wrong
in context        of questions about the case's edit: a string of it stands in the prompt that the model read
in scope          of all questions: the model read something else than the question; 100 minus this is the locality of
                  routing where the edit is not asked about

An editor whose gate decides inside the pass (GRACE, MELO, WISE), or between two models (SERAC), retrieves the entry
that is nearest, and accepts it if the gate opens: filter recall and precision are those of the gate. WISE's side memory
holds all edits, so it is retrieved for every question, and right for those about an edit.

A number has no meaning (NaN) where nothing is counted: the first five for kinds that the edit is not about, the
filter's without a filter.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from kedit.cases import KINDS
from kedit.results.cells import Cell

ABOUT = ("reliability", "generality", "portability", "efficacy", "paraphrase")  # their answers follow from the edit
UNRELATED = ("locality", "neighborhood")
ALL = "all"
MEASURES = ("recall@k", "recall@1", "filter recall", "filter precision", "in context", "in scope")
COLUMNS = ("T", "kind", "group", "N", *MEASURES)
ANY = -1  # the edit of an entry that holds all edits
GATED = "an open gate"
_QUESTION = ["step", "case", "kind", "group", "probe"]


def routing(cell: Cell) -> pd.DataFrame:
    """COLUMNS: for each T a line for all kinds, each kind (group ""), and each group of a kind with several; empty
    where nothing was recalled from a memory."""
    judged = questions(cell)
    lines = [line for T, asked in judged.groupby("T") for line in _lines(int(T), asked)] if len(judged) else []
    return pd.DataFrame(lines, columns=list(COLUMNS))


def questions(cell: Cell) -> pd.DataFrame:
    """One line for each question of a test: what was retrieved, accepted and injected for it, in numbers."""
    rows = cell.rows
    if "route" not in rows:
        return pd.DataFrame()
    tested = rows[(rows["when"] == "test") & rows["kind"].isin(ABOUT + UNRELATED)].drop_duplicates(_QUESTION)
    routes = [_as_recalled(route) if isinstance(route, dict) else {} for route in tested["route"]]
    if not any(routes):
        return pd.DataFrame()
    own = _own_edits(cell.steps, tested)
    judged = pd.DataFrame(map(_judged, routes, own), index=tested.index)
    return tested[[*_QUESTION, "T"]].join(judged)


def edit_numbers(steps: pd.DataFrame) -> pd.DataFrame:
    """For each edit that was kept, its `step`, `case`, `memory` (which one: an emptied memory is a new one) and `edit`,
    its number in that memory. Every case has one edit."""
    made = steps.assign(memory=_memories(steps)).rename(columns={"cases": "case"})
    kept = made[made["failed"] != 1] if "failed" in made else made
    each = kept[["step", "memory", "case"]].explode("case").dropna(subset="case")
    return each.assign(edit=each.groupby("memory").cumcount())


def _memories(steps: pd.DataFrame) -> pd.Series:
    """Which memory each step writes to: the first edits after a restore are all that it has so far."""
    return (steps["cases_so_far"] == steps["cases"].str.len()).cumsum()


def _own_edits(steps: pd.DataFrame, tested: pd.DataFrame) -> list[float]:
    """The number of each row's own edit; NaN where it was undone."""
    memory = dict(zip(steps["step"], _memories(steps), strict=True))
    numbers = edit_numbers(steps).set_index(["memory", "case"])["edit"].to_dict()
    return [
        float(numbers.get((memory[step], case), "nan"))
        for step, case in zip(tested["step"], tested["case"], strict=True)
    ]


def _as_recalled(route: Mapping[str, Any]) -> dict[str, Any]:
    """A gate's decision as that of a filter over the nearest entry; nothing of routes without a memory."""
    if "retrieved" in route:
        return dict(route)
    if "in_scope" not in route:
        return {}
    nearest = {"edit": route.get("edit", ANY), "accepted": route["in_scope"], "gate": True}
    return {"retrieved": [nearest], "in_context": [GATED] * route["in_scope"], "in_scope": route["in_scope"]}


def _judged(route: Mapping[str, Any], own: float) -> dict[str, int]:
    """One question's counts; no route is one for which nothing was recalled."""
    retrieved = route.get("retrieved", [])
    mine = [found["edit"] == own or (found["edit"] == ANY and own == own) for found in retrieved]
    accepted = [is_own for is_own, found in zip(mine, retrieved, strict=True) if found["accepted"]]
    return {
        "retrieved": int(any(mine)),
        "nearest": int(any(mine[:1])),
        "kept": int(any(accepted)),
        "accepted": len(accepted),
        "right": sum(accepted),
        "in context": int(any(accepted[: len(route.get("in_context", []))])),  # the first of the accepted
        "in scope": int(route.get("in_scope", 0)),
        "filtered": int(any("probability" in found or "gate" in found for found in retrieved)),
    }


def _lines(T: int, asked: pd.DataFrame) -> Iterator[dict[str, Any]]:
    filtered = bool(asked["filtered"].any())
    yield {"T": T, "kind": ALL, "group": ""} | _measures(asked, filtered) | {"in scope": float("nan")}
    for kind in KINDS:
        of_kind = asked[asked["kind"] == kind]
        if len(of_kind):
            yield {"T": T, "kind": kind, "group": ""} | _measures(of_kind, filtered)
        if of_kind["group"].nunique() > 1:
            for group, part in of_kind.groupby("group"):
                yield {"T": T, "kind": kind, "group": group} | _measures(part, filtered)


def _measures(asked: pd.DataFrame, filtered: bool) -> dict[str, float | int]:
    about = asked[asked["kind"].isin(ABOUT)]
    n = {name: int(about[name].sum()) for name in ("retrieved", "nearest", "kept", "right", "in context")}
    found = {
        "N": len(asked),
        "recall@k": _share(n["retrieved"], len(about)),
        "recall@1": _share(n["nearest"], len(about)),
        "in context": _share(n["in context"], len(about)),
        "in scope": _share(int(asked["in scope"].sum()), len(asked)),
    }
    if filtered and len(about):
        found["filter recall"] = _share(n["kept"], n["retrieved"])
        found["filter precision"] = _share(n["right"], int(asked["accepted"].sum()))
    return found


def _share(part: int, whole: int) -> float:
    """Per cent."""
    return 100 * part / whole if whole else float("nan")
