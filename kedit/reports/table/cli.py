"""Tables of what has run: python -m kedit.table [SWEEP or DIRECTORY]. Needs no GPU and no model."""

import argparse
import sys
from pathlib import Path
from typing import get_args

from kedit.common.errors import InputError
from kedit.common.terminal import use_safe_output
from kedit.evaluation.metrics import captions
from kedit.reports.table.show import output
from kedit.results.scores import Merge

VIEWS = ("ours", "paper", "difference", "all")
FORMATS = ("terminal", "markdown", "csv", "latex", "latex-narrow", "html")
MIX = ("settings", "scoring", "strictness", "orders", "versions", "options", "data", "models", "all")


def main() -> None:
    use_safe_output()
    given = parser().parse_args()
    try:
        output(given)
    except InputError as error:
        sys.exit(str(error))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m kedit.table", description="Show a paper's table beside what has run, or the table of any runs."
    )
    add = made.add_argument
    add("place", nargs="?", help="a sweep's name, or a directory of runs (default: quickstart); of claims a paper")
    add("--view", choices=VIEWS, default="all", help="of a paper's table")
    scorings = captions()
    help_scoring = "of the answers: " + "; ".join(f"{name}: {said}" for name, said in scorings.items())
    add("--scoring", choices=tuple(scorings), default="token", help=help_scoring)
    add("--scored-as", metavar="NAME", help="of a paper's table: a reading of its metrics, e.g. kdpo or kdpo_released")
    add("--merge", choices=get_args(Merge), help="how probes become one number, of a table without a paper")
    add("--versus", nargs=2, metavar=("EDITOR", "EDITOR"), help="the difference of two, on the same cases")
    add("--mix", action="append", default=[], metavar="WHAT", help="allow cells that differ in this: " + ", ".join(MIX))
    add("--options", metavar="TEXT", help="only cells run with these overrides (as in their directory; '': with none)")
    add("--routing", action="store_true", help="what was recalled from a memory of edits, per kind of probe")
    add("--strict", action="store_true", help="teacher forcing beside strict evaluation, by kind, and the gap")
    add("--claims", action="store_true", help="what the papers claim, judged on their numbers and on ours")
    add("--plain", action="store_true", help="not in the paper's layout")
    add("--format", choices=FORMATS, help="default: the terminal's, or by the ending of --out")
    add("--out", type=Path, metavar="FILE", help="write there")
    return made


if __name__ == "__main__":
    main()
