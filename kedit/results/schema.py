"""The form of a cell's rows. `schema` in meta.json says which one they have; rows of every older one can be read.

1  the first
2  `edits_so_far` counts edits (schema 1: cases), `cases_so_far` counts cases; in `route`, "retrieved", "in_context" and
   "in_scope" were called "recalled", "injected" and "routed"
"""

from typing import TYPE_CHECKING, Any

from kedit.common.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 2
RENAMED = {"recalled": "retrieved", "injected": "in_context", "routed": "in_scope"}  # in a route, since schema 2


def check(schema: int, where: str) -> None:
    """Raises InputError if these rows were written by a newer kedit."""
    if schema > SCHEMA:
        raise InputError(f"{where}: its rows have schema {schema}, this kedit reads up to {SCHEMA}; update kedit")


def upgraded(rows: "pd.DataFrame", schema: int) -> "pd.DataFrame":
    """Rows of an older schema in the form of the newest. In schema 1 every case had one edit."""
    if schema >= SCHEMA:
        return rows
    if "edits_so_far" in rows:
        rows = rows.assign(cases_so_far=rows["edits_so_far"])
    return rows.assign(route=rows["route"].map(_renamed)) if "route" in rows else rows


def _renamed(route: Any) -> Any:
    return {RENAMED.get(name, name): value for name, value in route.items()} if isinstance(route, dict) else route
