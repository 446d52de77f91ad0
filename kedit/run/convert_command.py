"""A published checkpoint as files that an editor reads: python -m kedit.convert mend FILE. Needs no language model.

FILE is what the released MEND code or EasyEdit saves: a pickle. It is read without running code that it names: tensors,
numbers and texts are, and the config classes of a few models; anything else is refused by name.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from kedit.common.errors import InputError
from kedit.editors.hypernetwork.released import convert


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m kedit.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="editor", required=True)
    mend = commands.add_parser("mend", help="a checkpoint of the released MEND code or EasyEdit")
    mend.add_argument("file", type=Path, help="the checkpoint")
    mend.add_argument("--out", type=Path, help="the folder to write (default: FILE.kedit)")
    mend.add_argument(
        "--inner-params",
        nargs="+",
        metavar="NAME",
        help="the edited parameters in the order of the config that the checkpoint was trained with (default: every "
        "matrix of the last MLPs, in the model's order)",
    )
    return parser.parse_args()


def main() -> None:
    given = arguments()
    try:
        for line in convert(given.file, given.out or Path(f"{given.file}.kedit"), given.inner_params):
            Console(soft_wrap=True, highlight=False).print(line, markup=False)
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
