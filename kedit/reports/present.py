"""What a run or a sweep shows at its end: tables on the terminal, and tables and pictures in files."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kedit.common.errors import InputError, disk_is_full

log = logging.getLogger(__name__)


@contextmanager
def showing(place: str | Path) -> Iterator[None]:
    """Inside, results of `place` are shown: what goes wrong is logged, and costs neither a run nor its exit status."""
    try:
        yield
    except InputError as error:
        log.warning("no table: %s", error)
    except Exception as error:
        if disk_is_full(error):
            raise
        log.exception("the results could not be shown; python -m kedit.table %s tries again", place)


def show_cells(directories: Sequence[Path]) -> None:
    """Print the tables of these cells; of several, one with all of them side by side."""
    from kedit.reports import compare
    from kedit.reports.table import ability_table, formats, plain, routing_table, strictness_table
    from kedit.results.cells import readable, tested

    cells = tested(readable(directories))
    if len(cells) > 1:
        compare.show(cells)
    else:
        plain.show(list(plain.tables(cells)))
    formats.show([strictness_table.grid(*one) for one in strictness_table.tables(cells)])
    formats.show([ability_table.grid(*one) for one in ability_table.tables(cells)])
    formats.show([routing_table.grid(*one) for one in routing_table.tables(cells)])


def show_hints(home: Path, look_at: Sequence[str], commands: Sequence[str]) -> None:
    """Print below a sweep's table what to look at, where its pictures and its page are, and what to type next."""
    pictures, page = sorted(path.name for path in home.glob("*.png")), home / "index.html"
    lines = ["What to look at", *(f"  - {text}" for text in look_at), ""] if look_at else []
    lines += [f"Pictures  {home}/{{{','.join(pictures)}}}"] if pictures else []
    lines += [f"Page      {page}"] if page.is_file() else []
    lines += ["Next", *(f"  {command}" for command in commands)] if commands else []
    if lines:
        sys.stdout.write("\n".join(lines) + "\n")


def present_cells(directory: Path) -> list[Any]:
    """Write the tables and the pictures of the cells below a directory. Returns (caption, table) pairs of scores."""
    from kedit.reports.plot import draw
    from kedit.reports.table import ability_table, plain, routing_table, strictness_table
    from kedit.results.cells import find, tested

    cells = tested(find(directory))
    try:
        for picture in filter(None, (drawn.path for drawn in draw(cells, directory))):
            log.info("%s", picture)
    except InputError as error:
        log.info("no pictures: %s", error)
    strictness_table.write(cells, directory)
    ability_table.write(cells, directory)
    routing_table.write(cells, directory)
    return plain.write(cells, directory)
