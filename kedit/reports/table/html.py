"""Grids as one HTML page that needs nothing else: a tab for each view, columns that sort, cells that link to runs."""

import re
from collections.abc import Mapping, Sequence
from html import escape

from kedit.reports.table.formats import DASH, Grid, Line, TableCell, spans

STYLE = """
:root { color-scheme: light }
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2024; background: #fff; margin: 2rem auto; padding: 0 1.5rem;
  max-width: max-content }
h1 { font-size: 1.35rem; margin: 0 0 1rem } h2 { font-size: 1.02rem; margin: 1.4rem 0 .5rem }
.tabs { display: flex; gap: .25rem; border-bottom: 1px solid #d5d9dd; margin-bottom: .5rem }
.tabs button { font: inherit; border: 0; background: none; padding: .45rem .9rem; cursor: pointer; color: #57606a;
  border-bottom: 3px solid transparent }
.tabs button[aria-selected=true] { color: #0b57a4; border-color: #0b57a4; font-weight: 600 }
.scroll { overflow-x: auto; max-width: calc(100vw - 3rem) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; border-bottom: 2px solid #1c2024 }
thead tr:first-child th { border-top: 2px solid #1c2024 }
thead tr:last-child th { border-bottom: 1px solid #1c2024; cursor: pointer; user-select: none; vertical-align: bottom }
thead tr:last-child th:hover { background: #eef4fb }
th { font-weight: 600; padding: .3rem .6rem } thead th { background: #f6f8fa } thead th[colspan] { text-align: center }
tbody th { text-align: left; font-weight: 400; white-space: nowrap } tbody th.again { color: #a8b0b8 }
td { text-align: right; padding: .2rem .6rem; white-space: nowrap } tbody th, td { vertical-align: top }
tbody th { padding: .2rem .6rem }
td.first, th.first { border-left: 1px solid #d5d9dd } tr.group > * { border-top: 1px solid #d5d9dd }
table.sorted th.again { color: inherit } table.sorted tr.group > * { border-top: 0 }
tbody tr:hover > * { background: #f3f7fb }
td small { color: #6a737d; font-size: .82em; font-weight: 400 } td.empty { color: #b0b7be; cursor: help }
td a { color: #0b57a4; text-decoration: none } td a:hover { background: #dcebfa } th.stub { text-align: left }
u { text-underline-offset: 3px } th .way { color: #0b57a4; font-size: .8em }
.caption { color: #424a53; max-width: 62rem; margin: .7rem 0 } pre { background: #f6f8fa; padding: .6rem .8rem;
  border-radius: 6px; max-width: 62rem; white-space: pre-wrap } td.text { text-align: left; white-space: normal;
  max-width: 36rem }
"""
SCRIPT = """
document.querySelectorAll('.tabs button').forEach(tab => tab.onclick = () => {
  document.querySelectorAll('.tabs button').forEach(b => b.setAttribute('aria-selected', b === tab));
  document.querySelectorAll('section').forEach(s => s.hidden = s.id !== tab.dataset.view);
});
const shown = cell => cell ? (cell.dataset.sort ?? cell.textContent).trim() : '';
const number = text => parseFloat(text.replace('+', ''));
document.querySelectorAll('table').forEach(table => {
  const heads = [...table.tHead.rows].pop().cells, body = table.tBodies[0], original = [...body.rows];
  [...heads].forEach((head, at) => { head.onclick = () => {
    const next = { '': 'down', down: 'up', up: '' }[head.dataset.way ?? ''];
    [...heads].forEach(h => { delete h.dataset.way; h.querySelector('.way').textContent = ''; });
    head.dataset.way = next;
    head.querySelector('.way').textContent = { down: ' \\u25be', up: ' \\u25b4', '': '' }[next];
    const sign = next === 'up' ? 1 : -1, order = (a, b) => {
      const [x, y] = [shown(a.cells[at]), shown(b.cells[at])], [m, n] = [number(x), number(y)];
      if (isNaN(m) || isNaN(n)) return isNaN(m) && isNaN(n) ? -sign * x.localeCompare(y) : isNaN(m) - isNaN(n);
      return sign * (m - n);
    };
    body.append(...(next ? [...original].sort(order) : original));
    table.classList.toggle('sorted', !!next);
  }; });
});
"""


def page(title: str, views: Mapping[str, Sequence[Grid]]) -> str:
    """One page; `views`: the name of each tab, and its tables. The first that has a table is open."""
    names = list(views)
    first = next((i for i, name in enumerate(names) if any(grid.lines for grid in views[name])), 0)
    tabs = "".join(
        f'<button role="tab" data-view="view{i}" aria-selected="{str(i == first).lower()}">{escape(name)}</button>'
        for i, name in enumerate(names)
    )
    sections = "\n".join(
        f'<section id="view{i}"{"" if i == first else " hidden"}>\n'
        + "\n".join(map(_table, views[name]))
        + "\n</section>"
        for i, name in enumerate(names)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + (f'<div class="tabs" role="tablist">{tabs}</div>\n' if len(names) > 1 else "")
        + f"{sections}\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _table(grid: Grid) -> str:
    title = f"<h2>{escape(grid.title)}</h2>\n" if grid.title else ""
    commands = "\n".join(map(escape, grid.commands))
    foot = f'<p class="caption">{escape(grid.caption)}</p>' + (f"\n<pre>{commands}</pre>" if commands else "")
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
        f'{title}<div class="scroll"><table>\n<thead>\n{heads}\n</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>\n'
        + foot
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
    way = '<span class="way"></span>' if inner else ""
    stubs = "".join(f'<th class="stub">{escape(name) if inner else ""}{way}</th>' for name in grid.stubs)
    texts, at, firsts = [], 0, _firsts(grid)
    for name, n in spans(grid.columns, level):
        classes = ["first"] * (at in firsts) + ["stub"] * (inner and name in grid.prose)
        first = f' class="{" ".join(classes)}"' if classes else ""
        texts.append(f"<th{first}{f' colspan={n}' if n > 1 else ''}>{escape(name)}{way}</th>")
        at += n
    return f"<tr>{stubs}{''.join(texts)}</tr>"


def _line(line: Line, above: Line | None, firsts: set[int], prose: set[int]) -> str:
    again = [bool(above) and above.head[: i + 1] == line.head[: i + 1] for i in range(len(line.head))]  # type: ignore[union-attr]
    group = ' class="group"' if above and len(line.head) > 1 and not again[0] else ""
    heads = "".join(
        f'<th class="again">{escape(text)}</th>' if before else f"<th>{escape(text)}</th>"
        for text, before in zip(line.head, again, strict=True)
    )
    cells = "".join(_cell(entry, i in firsts, i in prose) for i, entry in enumerate(line.entries))
    return f"<tr{group}>{heads}{cells}</tr>"


def _cell(entry: TableCell, first: bool, prose: bool) -> str:
    classes = [*(["first"] if first else []), *(["empty"] if entry.text == DASH else [])]
    classes += ["text"] if prose else []
    attributes = f' class="{" ".join(classes)}"' if classes else ""
    attributes += f' title="{escape(entry.hint)}"' if entry.hint else ""
    number, bracket = re.fullmatch(r"(.*?)( \([\d.]+\))?", entry.text, re.DOTALL).groups("")  # type: ignore[union-attr]
    text = f"<u>{escape(number)}</u>" if entry.underline else escape(number)
    text = f"<b>{text}</b>" if entry.bold else text
    text = f'<a href="{escape(entry.link)}">{text}</a>' if entry.link else text
    return f"<td{attributes}>{text}{f'<small>{bracket}</small>' if bracket else ''}</td>"
