"""A sweep's page is put together: tables in tabs, pictures, answers, cells, and links to the same tables as files."""

import base64
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from shutil import rmtree
from typing import Any

from kedit.common.errors import InputError
from kedit.common.text_files import write_text
from kedit.reports import compare
from kedit.reports.page import answers
from kedit.reports.page import cells as of_cells
from kedit.reports.page.document import FOLDER, beside, document, inside, packed
from kedit.reports.table import ability_table, formats, routing_table
from kedit.reports.table.formats import Grid
from kedit.reports.table.html import DETAILS, first_with_lines, tables
from kedit.reports.table.layout import Layout, layout
from kedit.results.cells import Cell, find, tested

log = logging.getLogger(__name__)
PAGE = "index.html"
ANSWERS = "answers"  # the folder of what a large page loads when it is needed
MOST = 3_000_000  # letters of answers in the page itself
MOST_PICTURES = 4_000_000  # bytes of pictures in the page itself
SHOWN = ("*.csv", "*.tex", "*.md", "cells.json")  # files that the page links to
FORM = "answers.html"  # the form of the search in answers


def write_page(home: Path, found: Sequence[Cell] | None = None) -> Path:
    """Write index.html into a folder of runs, with its tables as files beside it; returns the page."""
    cells = tested(find(home) if found is None else list(found))
    known = layout(home.name)
    views = _views(home, known, cells)
    _files(home, views)
    tabs = {name: tables(grids) for name, grids in views.items()}
    groups, parts = answers.parts(cells)
    packed_parts = {name: packed(content) for name, content in parts}
    data = inside("cells", packed(of_cells.described(cells, home))) + _stored(home, packed_parts)
    if groups:
        tabs["answers"] = _form(groups)
        listed = json.dumps(groups).replace("<", "\\u003c")  # a name cannot end the script
        data += f'<script type="application/json" id="groups">{listed}</script>\n'
    if pictures := _pictures(home):
        tabs["pictures"] = pictures
    tabs["cells"] = tables([of_cells.grid(cells, home)])
    tabs["files"] = _links(home)
    title = f"{home.name}: {known.name}" if known else home.name
    data += '<dialog id="cell" aria-labelledby="cell-title"></dialog>\n'
    text = document(title, tabs, lead=_lead(cells), tools=DETAILS, first=first_with_lines(views), data=data)
    write_text(home / PAGE, text)
    return home / PAGE


def _views(home: Path, known: Layout | None, cells: Sequence[Cell]) -> dict[str, Sequence[Grid]]:
    """The tables of each tab."""
    from kedit.reports.table.show import paper_table

    views: dict[str, Sequence[Grid]] = {}
    if known:
        try:
            views |= paper_table(known, cells, mix=("all",), out=home / PAGE).views
        except InputError as error:
            log.warning("not in the paper's layout: %s", error)
    lines = compare.side_by_side(cells, checkpoints=True)
    views["side by side" if views else "scores"] = [compare.grid(lines, intervals=True, home=home)]
    more = {
        "ability": [ability_table.grid(*one) for one in ability_table.tables(cells)],
        "routing": [routing_table.grid(*one) for one in routing_table.tables(cells)],
    }
    return views | {name: grids for name, grids in more.items() if grids}


def _files(home: Path, views: Mapping[str, Sequence[Grid]]) -> None:
    """The first view's tables as LaTeX, as wide as they are and for one column of a page."""
    grids = next(iter(views.values()))
    write_text(home / "table.tex", "\n".join(map(formats.latex, grids)))
    write_text(home / "table_narrow.tex", "\n".join(map(formats.narrow_latex, grids)))


def _lead(cells: Sequence[Cell]) -> str:
    unfinished = sum(not cell.finished for cell in cells)
    seeds = sorted({cell.meta["seed"] for cell in cells})
    said = [
        f"{len(cells)} cell{'s' * (len(cells) != 1)}",
        f"edit seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}",
        *([f"{unfinished} not finished: what they have tested counts"] if unfinished else []),
        "a number opens the config and the provenance of its cells",
    ]
    return "; ".join(said) + "."


def _form(groups: Iterable[Mapping[str, Any]]) -> str:
    options = "".join(f'<option value="{i}">{escape(group["caption"])}</option>' for i, group in enumerate(groups))
    return (FOLDER / FORM).read_text(encoding="utf-8").replace("{groups}", options)


def _stored(home: Path, parts: Mapping[str, str]) -> str:
    """Parts in the page; those of a large sweep in files beside it."""
    folder = home / ANSWERS
    if folder.is_dir():
        rmtree(folder)
    if sum(map(len, parts.values())) <= MOST:
        return "".join(inside(name, text) for name, text in parts.items())
    folder.mkdir()
    for name, text in parts.items():
        write_text(folder / f"{name}.js", beside(name, text))
    return ""


def _pictures(home: Path) -> str:
    paths = sorted(home.glob("*.png"))
    within = sum(path.stat().st_size for path in paths) <= MOST_PICTURES
    return "\n".join(_picture(path, within) for path in paths)


def _picture(path: Path, within: bool) -> str:
    content = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" if within else path.name
    name = escape(path.stem.replace("_", " "))
    return (
        f'<figure><img loading="lazy" src="{escape(content)}" alt="{name}: docs/pictures.md says what it shows">'
        f"<figcaption>{name}</figcaption></figure>"
    )


def _links(home: Path) -> str:
    paths = sorted({path for pattern in SHOWN for path in home.glob(pattern)})
    lines = "\n".join(f'<li><a href="{escape(path.name)}">{escape(path.name)}</a></li>' for path in paths)
    return f'<h2>Files beside this page</h2>\n<ul class="files">\n{lines}\n</ul>'
