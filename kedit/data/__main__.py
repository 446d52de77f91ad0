"""python -m kedit.data FILE: what a data file holds, and what will bound its scores."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from kedit.common.errors import InputError
from kedit.common.terminal import use_safe_output
from kedit.data.dataset import select
from kedit.data.files import parse_file, recognise
from kedit.data.report import report


def main() -> None:
    use_safe_output()
    parser = argparse.ArgumentParser(
        prog="python -m kedit.data", description="Say what a data file holds, and what will bound its scores."
    )
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--dedup", default="none", help="first, none or odd_toggle_last: which of the cases with one subject are kept"
    )
    given = parser.parse_args()
    try:
        form = recognise(given.file)
        dropped: Counter[str] = Counter()
        cases = parse_file(form.parse, given.file, True, dropped)
        cases = list(select(cases, dedup=given.dedup, order_seed=None, limit=None, dropped=dropped))
    except InputError as error:
        sys.exit(str(error))
    lines = [
        f"{given.file}: {form.__name__.rpartition('.')[2]} form",
        *report(cases),
        *(f"dropped: {n} {what}" for what, n in dropped.items()),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
