"""A grid of texts as Markdown, LaTeX, or on the terminal (as a page: html.py). Knows nothing of scores."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import groupby

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

DASH = "-"
RAISED = str.maketrans("abcdefghijklmnoprstuvwxyz,", "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ˒")
# headers that would not fit 80 columns
BROKEN = {
    "generality": "gener-\nality",
    "portability": "porta-\nbility",
    "locality": "loca-\nlity",
    "neighborhood": "neighbor-\nhood",
    "consistency": "consis-\ntency",
}


@dataclass(frozen=True)
class TableCell:
    """One cell of a grid: what it says, how it looks, and for a page what lies behind it."""

    text: str = DASH
    bold: bool = False
    underline: bool = False
    mark: str = ""  # raised behind the text: of significance, of a footnote
    hint: str = ""
    link: str = ""


@dataclass(frozen=True)
class Line:
    head: tuple[str, ...]
    entries: tuple[TableCell, ...]


@dataclass(frozen=True)
class Grid:
    """A table: `stubs` name the columns of each line's head, `columns` the others, outermost name first."""

    title: str
    stubs: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    lines: tuple[Line, ...]
    caption: str
    commands: tuple[str, ...] = ()  # that fill what is empty
    prose: tuple[str, ...] = ()  # columns of sentences

    def __post_init__(self) -> None:
        wrong = [line for line in self.lines if len(line.entries) != len(self.columns)]
        if wrong:
            raise ValueError(f"{self.title}: {wrong[0].head} has {len(wrong[0].entries)} of {len(self.columns)} cells")

    @property
    def levels(self) -> int:
        return max((len(names) for names in self.columns), default=0)


def spans(columns: Sequence[tuple[str, ...]], level: int) -> Iterator[tuple[str, int]]:
    """(name, columns below it) of one level of headers; equal neighbours under the same outer names are joined."""
    for names, group in groupby(columns, key=lambda names: names[: level + 1]):
        yield names[-1], len(list(group))


def raised(mark: str) -> str:
    """Letters of footnotes as small raised ones, for text without another way to raise them."""
    return mark.translate(RAISED)


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown(grid: Grid) -> str:
    header = [*grid.stubs, *(" ".join(names) for names in grid.columns)]
    rule = ["---"] * len(grid.stubs) + ["---" if names[-1] in grid.prose else "--:" for names in grid.columns]
    header = [plain_markdown(text) for text in header]
    lines = [[*map(plain_markdown, line.head), *map(_markdown, line.entries)] for line in grid.lines]
    body = [header, rule, *lines]
    title = f"**{plain_markdown(grid.title)}**\n\n" if grid.title else ""
    commands = "".join(f"\n    {command}" for command in grid.commands)
    table = "\n".join("| " + " | ".join(line) + " |" for line in body) + "\n\n" if grid.lines else ""
    return f"{title}{table}{plain_markdown(grid.caption)}\n" + (f"{commands}\n" if commands else "")


def _markdown(entry: TableCell) -> str:
    text = plain_markdown(entry.text)
    text = f"<u>{text}</u>" if entry.underline else text
    return (f"**{text}**" if entry.bold else text) + raised(entry.mark)


def plain_markdown(text: str) -> str:
    """Text that Markdown shows as it is: no HTML, no column of a table, no new line."""
    return escape(" ".join(text.splitlines()), quote=False).replace("|", r"\|")


# --- LaTeX -----------------------------------------------------------------------------------------------------------

_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "⊕": r"$\oplus$",
    "·": r"$\cdot$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def latex(grid: Grid) -> str:
    """A table environment; it needs the package booktabs."""
    title = rf"\textbf{{{_escape(grid.title)}.}} " if grid.title else ""
    commands = [f"% {command}" for command in grid.commands]
    body = _tabular(grid) if grid.lines else []
    inside = [r"\centering", *body, rf"\caption{{{title}{_escape(grid.caption)}}}"]
    return "\n".join([r"% needs \usepackage{booktabs}", *commands, r"\begin{table}", *inside, r"\end{table}"]) + "\n"


def _tabular(grid: Grid) -> list[str]:
    stubs = len(grid.stubs)
    head = []
    for level in range(grid.levels):
        inner = level == grid.levels - 1
        names = [_escape(name) for name in grid.stubs] if inner else [""] * stubs
        head.append(_tex_line([*names, *(_multicolumn(name, n) for name, n in spans(grid.columns, level))]))
    body = [_tex_line([*map(_escape, line.head), *map(_tex, line.entries)]) for line in grid.lines]
    form = "l" * stubs + "".join("p{7cm}" if names[-1] in grid.prose else "r" for names in grid.columns)
    begin, end = rf"\begin{{tabular}}{{{form}}}", r"\end{tabular}"
    return [begin, r"\toprule", *head, r"\midrule", *body, r"\bottomrule", end]


NARROW = 8  # columns of numbers beside each other in one column of a page


def narrow_latex(grid: Grid) -> str:
    """A table for one column of a two-column page: small, without intervals, its outermost headers under each other if
    they are too many, and a caption of one sentence."""
    parts = [grid]
    if grid.levels > 1 and len(grid.columns) > NARROW:
        names = dict.fromkeys(names[0] for names in grid.columns)
        parts = [_part(grid, name, last=False) for name in names]
    inside = [r"\centering", r"\scriptsize", r"\setlength{\tabcolsep}{2.5pt}"]
    inside += [line for part in parts if part.lines for line in (*_tabular(_without_brackets(part)), r"\par\smallskip")]
    title = f"{grid.title}. " if grid.title else ""
    first = grid.caption.partition("; ")[0].rstrip(".")
    caption = rf"\caption{{{_escape(title + first)}.}}"
    return "\n".join([r"% needs \usepackage{booktabs}", r"\begin{table}", *inside, caption, r"\end{table}"]) + "\n"


def _without_brackets(grid: Grid) -> Grid:
    lines = [
        Line(line.head, tuple(replace(entry, text=re.sub(r" \([\d.]+\)$", "", entry.text)) for entry in line.entries))
        for line in grid.lines
    ]
    return replace(grid, lines=tuple(lines))


def _tex_line(texts: Sequence[str]) -> str:
    return " & ".join(texts) + r" \\"


def _multicolumn(name: str, n: int) -> str:
    return _escape(name) if n == 1 else rf"\multicolumn{{{n}}}{{c}}{{{_escape(name)}}}"


def _tex(entry: TableCell) -> str:
    text = re.sub(r"(?<!\w)-(?=\d)", "$-$", _escape(entry.text))
    text = rf"\underline{{{text}}}" if entry.underline else text
    text = rf"\textbf{{{text}}}" if entry.bold else text
    return text + (_SPECIAL.get(entry.mark, rf"$^{{{entry.mark}}}$") if entry.mark else "")


def _escape(text: str) -> str:
    return re.sub("|".join(map(re.escape, _SPECIAL)), lambda found: _SPECIAL[found[0]], text)


# --- terminal --------------------------------------------------------------------------------------------------------


def show(grids: Sequence[Grid]) -> None:
    """Print grids on the terminal; one that is too wide in parts, by its outermost headers."""
    for grid in grids:
        if not grid.lines:
            Console(soft_wrap=True).print(Text(grid.title, style="bold"), Text(f"{grid.caption}"), sep="\n")
        parts = [grid] if grid.lines else []
        if grid.lines and grid.levels > 1 and _width(_rich(grid)) > Console().width:
            names = dict.fromkeys(names[0] for names in grid.columns)
            parts = [_part(grid, name, last=name == list(names)[-1]) for name in names]
        for part in parts:
            _print(_rich(part))
        for command in grid.commands:
            Console(soft_wrap=True).print(Text(f"   {command}"))


def _part(grid: Grid, name: str, last: bool) -> Grid:
    chosen = [i for i, names in enumerate(grid.columns) if names[0] == name]
    lines = [Line(line.head, tuple(line.entries[i] for i in chosen)) for line in grid.lines]
    filled = [line for line in lines if any(entry != TableCell("") for entry in line.entries)]
    columns = tuple(grid.columns[i] for i in chosen)
    return Grid(grid.title, grid.stubs, columns, tuple(filled), grid.caption if last else "")


def _rich(grid: Grid) -> Table:
    caption = Text(grid.caption) if grid.caption else None
    title = Text(grid.title, style="bold") if grid.title else None
    table = Table(
        title=title, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0)
    )
    for name in grid.stubs:
        table.add_column(Text(_broken(name)), justify="left", no_wrap=True)
    for i, (names, name) in enumerate(zip(grid.columns, _headers(grid), strict=True)):
        if names[-1] in grid.prose:
            table.add_column(Text(name), max_width=_prose_width(grid, i))
        else:
            table.add_column(Text(name), justify="right", no_wrap=True)
    above: tuple[str, ...] = ()
    marks = [max((len(line.entries[i].mark) for line in grid.lines), default=0) for i in range(len(grid.columns))]
    for line in grid.lines:
        head = [("" if line.head[: i + 1] == above[: i + 1] else text) for i, text in enumerate(line.head[:-1])]
        above = line.head
        table.add_row(*map(Text, [*head, *line.head[-1:]]), *map(_text, line.entries, marks))
    return table


def _prose_width(grid: Grid, at: int) -> int:
    """A fair part of the terminal, and no word broken."""
    words = [word for line in grid.lines for word in line.entries[at].text.split()]
    return max((Console().width - 40) // len(grid.prose), *map(len, words), 24)


def _headers(grid: Grid) -> Iterator[str]:
    """Each column's names one above the other; an outer name only over the first column that it holds for."""
    inner = [_broken(names[-1]) for names in grid.columns]
    high = max((text.count("\n") for text in inner), default=0)
    above: tuple[str, ...] = ()
    for names, text in zip(grid.columns, inner, strict=True):
        outer = ["" if names[: i + 1] == above[: i + 1] else name for i, name in enumerate(names[:-1])]
        above = names
        yield "\n".join([*outer, "\n" * (high - text.count("\n")) + text])


def _broken(name: str) -> str:
    return BROKEN.get(name, name.replace(" ", "\n"))


def _text(entry: TableCell, room: int = 0) -> Text:
    """`room`: for the marks of the entry's column, so that its numbers stand below each other."""
    text = Text(entry.text, style=" ".join(["bold"] * entry.bold + ["underline"] * entry.underline))
    return text.append(raised(entry.mark).ljust(room), style="not bold not underline")


def _width(table: Table) -> int:
    console = Console()
    return Measurement.get(console, console.options.update(max_width=1000), table).maximum


def _print(table: Table) -> None:
    """A narrow terminal breaks lines: nothing is cut off."""
    Console(width=max(Console().width, _width(table))).print(table)
