"""How editors are called in tables: an editor's yaml begins with "# name: FT-M". A comment, so no part of a cell."""

from collections.abc import Iterable
from functools import cache

from kedit.common.paths import ROOT

NAME = "# name: "


@cache
def display_name(editor: str) -> str:
    """The name that papers have for an editor of conf/; its own name if its yaml says none, or is not there."""
    path = ROOT / "conf" / "editor" / f"{editor}.yaml"
    first = path.read_text(encoding="utf-8").partition("\n")[0] if path.is_file() else ""
    return first.removeprefix(NAME).strip() if first.startswith(NAME) else editor


def both_names(editor: str) -> str:
    """The display name, with the name on the command line behind it: FT-M (ft_m)."""
    name = display_name(editor)
    return name if name == editor else f"{name} ({editor})"


def said(editors: Iterable[str]) -> list[str]:
    """In a caption: which names of the command line the display names stand for; nothing if they are the same."""
    named = [f"{display_name(editor)} {editor}" for editor in dict.fromkeys(editors) if display_name(editor) != editor]
    return [f"editor= on the command line: {', '.join(named)}"] if named else []
