"""What has run, runs, failed or is missing: python -m kedit.status [SWEEP]. Needs no GPU and no model.

Exit status for scripts: 0 every cell is done; 1 a cell failed or is damaged (or nothing is there); 2 none did, but
cells run, were stopped, are missing or blocked (they lack a file or a model).
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kedit.common.cache import contents, prune
from kedit.common.errors import InputError
from kedit.common.paths import runs
from kedit.common.terminal import use_safe_output
from kedit.reports.cell_status import Seen, blocks, code, look, natural, remaining, sweep_exists

POLL_S = 10.0
STYLES = {
    "done": "green",
    "running": "yellow",
    "queued": "cyan",
    "stopped": "magenta",
    "failed": "red",
    "blocked": "red",
    "missing": "dim",
}


def grid(cells: Sequence[Seen]) -> Table:
    """One line for each model, dataset and editor; one column for each setting, T and seed."""
    columns = sorted({cell.column for cell in cells}, key=natural)
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("model / dataset / editor", max_width=60, overflow="fold")
    for column in columns:
        table.add_column(Text("\n".join(column)), justify="right", no_wrap=True)
    by_place = {(cell.row, cell.column): cell for cell in cells}
    for row in dict.fromkeys(cell.row for cell in cells):
        table.add_row(Text(row), *(_shown(by_place.get((row, column))) for column in columns))
    return table


def _shown(cell: Seen | None) -> Text:
    if cell is None:
        return Text("")
    said = [cell.state]
    if cell.state not in ("done", "missing", "blocked") and (cell.edits or cell.state != "queued"):
        said.append(f"{cell.edits}/{cell.wanted or '?'}")
    if cell.state == "running" and not math.isnan(cell.left):
        said.append(f"ETA {_duration(cell.left)}")
    if not math.isnan(cell.rate):
        said.append(f"{cell.rate:.3g}/s")
    return Text("\n".join([" ".join(said[:2]), " ".join(said[2:])]).strip(), style=STYLES[cell.state])


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def lines(cells: Sequence[Seen]) -> Iterator[str]:
    """What the grid does not show: counts, time left, errors, which models exactly."""
    counts = {state: sum(cell.state == state for cell in cells) for state in STYLES}
    left = remaining(cells)
    total = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    time_left = "" if not left or math.isnan(left) else f"; about {_duration(left)} left in one process"
    yield f"{len(cells)} cells: {total}{time_left} (/s: edits per second of editing)"
    for sentence, number in blocks(cells).items():
        yield f"blocks {number} cell{'s' * (number > 1)}: {sentence}"
    for cell in cells:
        if cell.state in ("running", "queued"):
            yield f"{cell.state}: {cell.directory}: {', '.join(filter(None, _doing(cell)))}"
        if cell.state == "failed":
            yield f"failed: {cell.directory}: {cell.error}"
        if cell.damage:
            yield cell.damage
    models = {(cell.directory.split("/")[0], cell.meta.get("model_is", {}).get("identity")) for cell in cells}
    for name, identity in sorted((model for model in models if model[1]), key=str):
        yield f"model {name}: {identity}"


def _doing(cell: Seen) -> Iterator[str]:
    """Where it is, how far, at which pace."""
    yield cell.whereabouts
    yield f"{cell.edits}/{cell.wanted or '?'} edits"
    yield "" if math.isnan(cell.rate) else f"{cell.rate:.3g} edits/s"
    yield "" if math.isnan(cell.left) else f"ETA {_duration(cell.left)}"
    yield f"peak {cell.peak_mb / 1024:.1f} GB" if cell.peak_mb else ""
    yield f"last error: {cell.error}" if cell.error else ""


def show(sweep: Path, cells: Sequence[Seen]) -> None:
    """Print one sweep's grid; a narrow terminal breaks its lines: nothing is cut off."""
    console, table = Console(soft_wrap=True, highlight=False), grid(cells)
    whole = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    console.print(Text(sweep.name, style="bold"))
    Console(width=max(console.width, whole)).print(table)
    for line in lines(cells):
        console.print(line, markup=False)


def main(plan: Callable[[str], None] | None = None) -> None:
    """`plan` looks for what the cells of a sweep need, and keeps what is missing."""
    use_safe_output()
    parser = argparse.ArgumentParser(prog="python -m kedit.status", description=__doc__)
    parser.add_argument("sweep", nargs="?", help=f"a sweep's name; without it all below {runs()}/")
    parser.add_argument("--check", action="store_true", help="look again for the files and models that cells need")
    parser.add_argument("--wait", action="store_true", help="return when no cell runs or is queued any more")
    parser.add_argument(
        "--watch", type=float, nargs="?", const=10.0, metavar="SECONDS", help="show it again and again until then"
    )
    parser.add_argument("--prune", type=float, metavar="DAYS", help="list what the cache holds unused for so long")
    parser.add_argument("--yes", action="store_true", help="with --prune: delete it")
    given = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    if given.prune is not None:
        try:
            for line in prune(given.prune, really=given.yes):
                console.print(line, markup=False)
        except InputError as error:
            sys.exit(str(error))
        return
    if plan and given.sweep and (given.check or not look(runs() / given.sweep)) and sweep_exists(given.sweep):
        plan(given.sweep)
    seconds = given.watch or (POLL_S if given.wait else None)
    while True:
        cells = report(given.sweep, clear=bool(given.watch), quiet=given.wait and not given.watch)
        if seconds is None or not any(cell.state in ("running", "queued") for cell in cells):
            break
        time.sleep(seconds)
    if given.wait and not given.watch:
        report(given.sweep)
    sys.exit(code(cells))


def report(sweep: str | None, *, clear: bool = False, quiet: bool = False) -> list[Seen]:
    """Print what is known of a sweep, or of all; returns its cells."""
    sweeps = [runs() / sweep] if sweep else [path for path in sorted(runs().glob("*")) if path.is_dir()]
    seen = {home: look(home) for home in sweeps}
    cells = [cell for found in seen.values() for cell in found]
    if not cells:
        sys.exit(str(InputError(f"{runs() / (sweep or '')}: no cell there; give a sweep that has run")))
    if quiet:
        return cells
    console = Console(soft_wrap=True, highlight=False)
    if clear:
        console.clear()
    for home, found in seen.items():
        if found:
            show(home, found)
    console.print(contents(), markup=False)
    return cells


if __name__ == "__main__":
    main()
