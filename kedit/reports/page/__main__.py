"""Write a sweep's page: python -m kedit.reports.page SWEEP. Needs no GPU and no model."""

import argparse
import sys

from kedit.common.errors import InputError
from kedit.common.paths import sweep_folder
from kedit.common.terminal import use_safe_output
from kedit.reports.page.build import write_page


def main() -> None:
    use_safe_output()
    parser = argparse.ArgumentParser(prog="python -m kedit.reports.page", description=str(__doc__))
    parser.add_argument("place", nargs="?", default="quickstart", help="a sweep's name, or a folder of runs")
    try:
        sys.stdout.write(f"{write_page(sweep_folder(parser.parse_args().place))}\n")
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
