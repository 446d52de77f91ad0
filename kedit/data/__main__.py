"""python -m kedit.data FILE: what a data file holds, and what limits its scores."""

import argparse
import sys
from pathlib import Path

from kedit.common.errors import InputError
from kedit.common.terminal import use_safe_output
from kedit.data.choices import dataset_options
from kedit.data.files import dataset_of, load, unused_fields
from kedit.data.report import report, unused_lines

DESCRIPTION = """Say what a data file holds, what limits its scores, and which of its fields are not used.
It reads the file as kedit does, and refuses what kedit refuses."""


def main() -> None:
    use_safe_output()
    parser = argparse.ArgumentParser(prog="python -m kedit.data", description=DESCRIPTION)
    parser.add_argument("file", type=Path, help="a JSON list of records, or one JSON record in each line")
    parser.add_argument("options", nargs="*", help="as for kedit, e.g. dataset.drop_empty_targets=true")
    parser.add_argument("--dataset", help="the choice of conf/dataset that reads it (default: by its first record)")
    parser.add_argument(
        "--dedup", help="which of the cases with one subject are kept: first, none or odd_toggle_last (default: none)"
    )
    given = parser.parse_args()
    try:
        lines = _lines(given)
    except InputError as error:
        sys.exit(str(error))
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.stdout.write("\n".join(lines) + "\n")


def _lines(given: argparse.Namespace) -> list[str]:
    name = given.dataset or dataset_of(given.file)
    overrides = [*given.options, *([f"dataset.dedup={given.dedup}"] if given.dedup else [])]
    options = dataset_options(name, overrides)
    dataset = load(**options | {"path": str(given.file)})
    return [
        f"{given.file}: {len(dataset.cases)} cases, read with {' '.join([f'dataset={name}', *overrides])}",
        *report(dataset.cases),
        *(f"dropped: {n} {what}" for what, n in dataset.dropped.items()),
        *unused_lines(*unused_fields(options["parse"], given.file)),
    ]


if __name__ == "__main__":
    main()
