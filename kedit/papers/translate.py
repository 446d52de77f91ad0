"""Translates the transcribed tables to names in conf/, once: python -m kedit.papers.translate SOURCE_DIR.

Three keys change; the printed name goes to `printed_as` as key=name (several are joined by "; "):

- editor: "+" becomes "_" and "-" becomes "_no_" (`lora+overtone-clip` is `lora_overtone_no_clip`).
- dataset: the one that the paper really used. "ZsRE" is KnowEdit's in KDPO and KEDAS; in "Model Editing by Standard
  Fine-Tuning" it is MEND's, in OVERTONE MEND's with portability questions; the "WikiRecent" of the former is its own.
- setting: OVERTONE's sequential editing restores the model after every T edits, which is `blocks`, and `single` at T=1.

Numbers, notes and the order of lines do not change. The files that it writes are committed; running it again changes
nothing.
"""

import argparse
import csv
import sys
from pathlib import Path

from kedit.common.errors import InputError
from kedit.papers import FOLDER

DATASETS = {
    ("ft_editing", "zsre"): "zsre_mend",
    ("ft_editing", "wikidata_recent"): "wikirecent_fte",
    ("overtone", "zsre"): "zsre_mend_portability",
}
CsvRow = dict[str, str]


def translated(row: CsvRow) -> CsvRow:
    """The row with names of conf/, and `printed_as`."""
    new = {
        "setting": _setting(row),
        "dataset": DATASETS.get((row["paper"], row["dataset"]), row["dataset"]),
        "editor": row["editor"].replace("+", "_").replace("-", "_no_"),
    }
    changed = [f"{key}={row[key]}" for key, name in new.items() if name != row[key]]
    return row | new | {"printed_as": "; ".join(changed)}


def _setting(row: CsvRow) -> str:
    if row["paper"] != "overtone" or row["setting"] != "sequential":
        return row["setting"]
    return "single" if row["T"] == "1" else "blocks"


def translate(source: Path, target: Path = FOLDER) -> list[Path]:
    """Write the translation of each <paper>_table<n>.csv in `source` to `target`; returns the written files."""
    paths = sorted(source.glob("*_table*.csv"))
    if not paths:
        raise InputError(f"{source}: no <paper>_table<n>.csv there; give the folder of the transcribed tables")
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [translated(row) for row in csv.DictReader(file)]
        with (target / path.name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return [target / path.name for path in paths]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kedit.papers.translate", description="Write kedit/papers/*.csv.")
    parser.add_argument("source", type=Path, help="the folder of the transcribed tables")
    try:
        translate(parser.parse_args().source)
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
