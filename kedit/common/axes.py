"""The axes of a sweep's grid, and the further options of its cells."""

import re
from typing import Any


def axis_values(axis: Any) -> list[str]:
    """The values of an axis, also inside a resolver: a and b, for "a,b" and for "${kedit.present:editor,a,b}"."""
    text = str(axis)
    if text.startswith("${"):
        text = text.partition(":")[2].rstrip("}").partition(",")[2]
    return [value.strip() for value in text.split(",") if value.strip()]


def separate_overrides(text: str) -> list[str]:
    """The overrides that a cell's `overrides` joins by commas; a value may hold commas itself."""
    return re.split(r",(?=[~+]*[\w./@-]+=|~)", text) if text else []
