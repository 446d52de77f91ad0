"""Nested options by dotted names, as the command line has them."""

from collections.abc import Iterator
from typing import Any


def dotted(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything below `node`; lists are values."""
    if not isinstance(node, dict):
        yield name, node
        return
    for key, value in node.items():
        yield from dotted(value, f"{name}.{key}" if name else str(key))
