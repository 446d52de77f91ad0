"""python -m kedit.plot [PICTURE ...] [SWEEP or DIRECTORY]"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from kedit.common.errors import InputError
from kedit.common.paths import sweep_folder
from kedit.common.terminal import use_safe_output
from kedit.reports.plot import PICTURES, Drawn, Picture, draw
from kedit.reports.plot.plot_data import together
from kedit.reports.plot.step_curves import tokens
from kedit.reports.plot.style import save
from kedit.results.cells import find, tested

FORMS = ("png", "pdf", "svg")


def main() -> None:
    use_safe_output()
    parser = argparse.ArgumentParser(
        prog="python -m kedit.plot",
        description="Draw pictures of what has run: of a sweep, or of the runs below a directory.",
        epilog=f"pictures: {', '.join(PICTURES)} (none given: all that these runs have something for)",
    )
    parser.add_argument("words", nargs="*", metavar="PICTURE|SWEEP|DIRECTORY", help="default: quickstart")
    parser.add_argument("--out", type=Path, help="a folder, or of one picture its file (default: beside the runs)")
    parser.add_argument("--format", choices=FORMS, help="default: png, or what --out ends in")
    parser.add_argument("--case", help="of tokens: this edit alone, by its case's id")
    given = parser.parse_args()
    chosen = {word: PICTURES[word] for word in given.words if word in PICTURES} or PICTURES
    if given.case is not None:
        chosen = {"tokens": Picture(partial(tokens, case=given.case))}
    places = [word for word in given.words if word not in PICTURES] or ["quickstart"]
    try:
        drawn = pictures(chosen, places, given.out, given.format)
    except InputError as error:
        sys.exit(str(error))
    for one in drawn:
        sys.stdout.write(f"{one.path or f'no {one.name}: {one.reason}'}\n")
    if not any(one.path for one in drawn):
        sys.exit(1)


def pictures(chosen: Mapping[str, Picture], places: Sequence[str], out: Path | None, form: str | None) -> list[Drawn]:
    """Draw what one place has; to the file `out` where it has a picture's ending, else into the folder."""
    if len(places) > 1:
        raise InputError(f"{' '.join(places)}: give one sweep or directory; pictures are {', '.join(PICTURES)}")
    cells = tested(find(places[0]))
    if out is None or out.suffix[1:] not in FORMS:
        return list(draw(cells, out or sweep_folder(places[0]), chosen, form or FORMS[0]))
    if len(chosen) > 1:
        raise InputError(f"--out {out}: {len(chosen)} pictures do not fit one file; name one, or give a folder")
    [(name, picture)] = chosen.items()
    apart = together(cells, picture.same)
    if len(apart) > 1:
        raise InputError(f"--out {out}: one file, and {len(apart)} sets of runs that may not be mixed; give a folder")
    save(picture.draw(cells), out)
    return [Drawn(name, out)]


if __name__ == "__main__":
    main()
