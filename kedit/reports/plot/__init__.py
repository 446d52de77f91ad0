"""Pictures of what has run, drawn from rows and traces: python -m kedit.plot. Needs no GPU and no model.

A picture is a function from cells that may stand together to a figure; it raises Nothing where they have none to show.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kedit.common.errors import disk_is_full, first_line
from kedit.reports.plot.ability import ability
from kedit.reports.plot.bars import bars
from kedit.reports.plot.plot_data import Nothing, together
from kedit.reports.plot.radar import average, radar
from kedit.reports.plot.retention import retention
from kedit.reports.plot.scatter import scatter
from kedit.reports.plot.step_curves import losses, tokens
from kedit.reports.plot.style import save
from kedit.results.cells import SAME, Cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """How it is drawn, and what cells must share to stand in it."""

    draw: Callable[[Sequence[Cell]], "Figure"]
    same: Sequence[str] = SAME


PICTURES: Mapping[str, Picture] = {
    "radar": Picture(radar),
    "average": Picture(average, same=[key for key in SAME if key != "dataset"]),
    "scatter": Picture(scatter),
    "retention": Picture(retention),
    "ability": Picture(ability),
    "bars": Picture(bars, same=[key for key in SAME if key not in ("dataset", "setting")]),
    "losses": Picture(losses),
    "tokens": Picture(tokens),
}


@dataclass(frozen=True)
class Drawn:
    """One attempt: the picture's file, or why there is none."""

    name: str
    path: Path | None
    reason: str = ""


def draw(
    cells: Sequence[Cell], folder: Path, pictures: Mapping[str, Picture] = PICTURES, form: str = "png"
) -> Iterator[Drawn]:
    """Draw into `folder`: <picture>.png where all cells may stand together, else one file for each set of cells that
    may, named after what sets it apart."""
    tested = [cell for cell in cells if cell.tested]
    if not tested:
        raise Nothing("nothing was tested yet in these runs")
    for name, picture in pictures.items():
        sets = together(tested, picture.same)
        for apart, group in sets.items():
            path = folder / (f"{name}-{apart}.{form}" if len(sets) > 1 else f"{name}.{form}")
            yield _attempt(name, partial(picture.draw, group), path)


def _attempt(name: str, make: Callable[[], "Figure"], path: Path) -> Drawn:
    try:
        save(make(), path)
    except Nothing as nothing:
        return Drawn(name, None, str(nothing))
    except Exception as error:  # the other pictures are drawn all the same
        if disk_is_full(error):
            raise
        log.exception("%s could not be drawn; python -m kedit.plot tries again", path)
        return Drawn(name, None, first_line(error))
    return Drawn(name, path)
