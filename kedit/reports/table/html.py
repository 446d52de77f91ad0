"""Grids as one HTML page that needs nothing else: a tab for each view, columns that sort, cells that link to runs."""

import re
from collections.abc import Mapping, Sequence
from html import escape

from kedit.reports.page.document import document
from kedit.reports.table.formats import DASH, Grid, Line, TableCell, spans

DETAILS = (
    '<div class="tools"><label class="check"><input type="checkbox" id="details"> intervals, cases and each seed\'s '
    "number in every cell</label></div>\n"
)


def page(title: str, views: Mapping[str, Sequence[Grid]]) -> str:
    """One page; `views`: the name of each tab, and its tables. The first that has a table is open."""
    tabs = {name: tables(grids) for name, grids in views.items()}
    return document(title, tabs, tools=DETAILS, first=first_with_lines(views))


def first_with_lines(views: Mapping[str, Sequence[Grid]]) -> str:
    return next((name for name in views if any(grid.lines for grid in views[name])), "")


def tables(grids: Sequence[Grid]) -> str:
    """Tables under each other."""
    return "\n".join(map(_table, grids))


def _table(grid: Grid) -> str:
    title = f"<h2>{escape(grid.title)}</h2>\n" if grid.title else ""
    commands = "\n".join(map(escape, grid.commands))
    foot = f'<p class="caption">{escape(grid.caption)}</p>' + (
        f'\n<pre class="lines">{commands}</pre>' if commands else ""
    )
    if not grid.lines:
        return title + foot
    heads = "\n".join(_head(grid, level) for level in range(grid.levels))
    firsts, above, lines = _firsts(grid), None, []
    prose = {i for i, names in enumerate(grid.columns) if names[-1] in grid.prose}
    for line in grid.lines:
        lines.append(_line(line, above, firsts, prose))
        above = line
    body = "\n".join(lines)
    return (
        f'{title}<div class="scroll" tabindex="0" role="region" aria-label="{escape(grid.title or "Table")}">'
        f'<table class="grid">\n<thead>\n{heads}\n</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>\n' + foot
    )


def _firsts(grid: Grid) -> set[int]:
    """Columns at which an outermost header begins."""
    if grid.levels < 2:
        return {0}
    ends, at = set(), 0
    for _, n in spans(grid.columns, 0):
        ends.add(at)
        at += n
    return ends


def _head(grid: Grid, level: int) -> str:
    inner = level == grid.levels - 1
    stubs = "".join(
        f'<th class="stub" scope="col">{_sorts(name)}</th>' if inner else "<td></td>" for name in grid.stubs
    )
    texts, at, firsts = [], 0, _firsts(grid)
    for name, n in spans(grid.columns, level):
        classes = ["first"] * (at in firsts) + ["stub"] * (inner and name in grid.prose)
        first = f' class="{" ".join(classes)}"' if classes else ""
        span = f' colspan="{n}"' if n > 1 else ""
        scope = "col" if inner else "colgroup"
        texts.append(f'<th scope="{scope}"{first}{span}>{_sorts(name) if inner else escape(name)}</th>')
        at += n
    return f"<tr>{stubs}{''.join(texts)}</tr>"


def _sorts(name: str) -> str:
    """A header that sorts its column."""
    return f"<button>{escape(name)}</button>"


def _line(line: Line, above: Line | None, firsts: set[int], prose: set[int]) -> str:
    again = [bool(above) and above.head[: i + 1] == line.head[: i + 1] for i in range(len(line.head))]  # type: ignore[union-attr]
    group = ' class="group"' if above and len(line.head) > 1 and not again[0] else ""
    heads = "".join(_stub(text, before) for text, before in zip(line.head, again, strict=True))
    cells = "".join(_cell(entry, i in firsts, i in prose) for i, entry in enumerate(line.entries))
    return f"<tr{group}>{heads}{cells}</tr>"


def _stub(text: str, again: bool) -> str:
    """A part of a line's head; `again`: the line above has the same."""
    if not text:
        return "<td></td>"
    return f'<th{" class=again" if again else ""} scope="row">{escape(text)}</th>'


def _cell(entry: TableCell, first: bool, prose: bool) -> str:
    classes = [*(["first"] if first else []), *(["empty"] if entry.text == DASH else [])]
    classes += ["text"] if prose else []
    attributes = f' class="{" ".join(classes)}"' if classes else ""
    attributes += f' title="{escape(entry.hint)}"' if entry.hint else ""
    number, bracket = re.fullmatch(r"(.*?)( \([\d.]+\))?", entry.text, re.DOTALL).groups("")  # type: ignore[union-attr]
    text = f"<u>{escape(number)}</u>" if entry.underline else escape(number)
    text = f"<b>{text}</b>" if entry.bold else text
    text = f'<a href="{escape(_address(entry.link))}">{text}</a>' if entry.link else text
    text += f"<sup>{escape(entry.mark)}</sup>" if entry.mark else ""
    return f"<td{attributes}>{text}{f'<small>{bracket}</small>' if bracket else ''}</td>"


def _address(path: str) -> str:
    """A path as a link: what addresses read otherwise is written so that it is the path again."""
    return path.replace("%", "%25").replace("#", "%23").replace("?", "%3F")
