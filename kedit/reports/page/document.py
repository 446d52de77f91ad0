"""The frame of a page: a file of HTML with its style, its script and its data, and a tab for each part."""

import base64
import gzip
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def document(
    title: str, tabs: Mapping[str, str], *, lead: str = "", tools: str = "", first: str = "", data: str = ""
) -> str:
    """One page. `tabs`: name -> HTML; `first`: the one that is open (default: the first); `tools`: HTML above them,
    `data`: at the end."""
    names = list(tabs)
    opened = names.index(first) if first in names else 0
    buttons = "".join(
        f'<button role="tab" id="tab{i}" data-view="view{i}" aria-controls="view{i}" '
        f'aria-selected="{str(i == opened).lower()}" tabindex="{0 if i == opened else -1}">{escape(name)}</button>'
        for i, name in enumerate(names)
    )
    several = len(names) > 1
    sections = "\n".join(
        f'<section id="view{i}"{f""" role="tabpanel" aria-labelledby="tab{i}" """ if several else " "}'
        f"{'' if i == opened else 'hidden'}>\n{tabs[name]}\n</section>"
        for i, name in enumerate(names)
    )
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<header>\n<h1>{escape(title)}</h1>\n"
        + (f'<p class="lead">{escape(lead)}</p>\n' if lead else "")
        + tools
        + (f'<div class="tabs" role="tablist" aria-label="Views">{buttons}</div>\n' if several else "")
        + f"</header>\n<main>\n{sections}\n</main>\n{data}<script>\n{script}</script>\n</body>\n</html>\n"
    )


def packed(content: Any) -> str:
    """JSON, compressed, as text of letters."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=str)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def inside(name: str, text: str) -> str:
    """A packed part in the page."""
    return f'<script type="text/plain" id="part-{name}">{text}</script>\n'


def beside(name: str, text: str) -> str:
    """A packed part as a file that the page loads when it is needed: as a script, since a page that was opened from a
    folder may read no other files."""
    return f"keditPart({json.dumps(name)},{json.dumps(text)})\n"
