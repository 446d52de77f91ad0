"""What a run or a sweep shows at its end: tables on the terminal, and tables and pictures in files."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kedit.common.errors import InputError

log = logging.getLogger(__name__)


def show_cells(directories: Sequence[Path]) -> None:
    """Print the tables of these cells."""
    from kedit.reports.table import formats, plain, routing_table
    from kedit.results.cells import find

    cells = [cell for directory in directories for cell in find(directory)]
    plain.show(list(plain.tables(cells)))
    formats.show([routing_table.grid(*one) for one in routing_table.tables(cells)])


def present_cells(directory: Path) -> list[Any]:
    """Write the tables and the pictures of the cells below a directory. Returns (caption, table) pairs of scores."""
    from kedit.reports.plot import draw
    from kedit.reports.table import plain, routing_table
    from kedit.results.cells import find

    cells = find(directory)
    try:
        for picture in filter(None, (drawn.path for drawn in draw(cells, directory))):
            log.info("%s", picture)
    except InputError as error:
        log.info("no pictures: %s", error)
    except Exception:  # a run is never lost for a picture
        log.exception("a picture could not be drawn; python -m kedit.plot %s tries again", directory)
    routing_table.write(cells, directory)
    return plain.write(cells, directory)
