"""Pictures, drawn from rows: python -m kedit.plot [SWEEP or DIRECTORY]."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from kedit.cells import Cell, find
from kedit.errors import InputError
from kedit.scores import per_case

PANELS = (  # kind -> title; of these the first that was asked
    {"reliability": "edit success", "generality": "generality", "locality": "locality"},
    {"efficacy": "efficacy", "paraphrase": "paraphrase", "neighborhood": "neighborhood"},
)


def ages(cell: Cell) -> pd.DataFrame:
    """The last test's rows with `age`: how many edits were made after the case's own."""
    tests = cell.rows[cell.rows["when"] == "test"]
    last = tests[tests["T"] == tests["T"].max()]
    made = cell.steps.explode("cases").drop_duplicates("cases", keep="last").set_index("cases")["edits_so_far"]
    return last.assign(age=last["edits_so_far"] - last["case"].map(made))


def retention(cells: Sequence[Cell], path: Path, bins: int = 10) -> bool:
    """Score by age of edit, one line an editor, dotted the unedited model; False where no edit has an age."""
    aged = {cell: ages(cell) for cell in cells}
    oldest = max(frame["age"].max() for frame in aged.values())
    panels = next((panels for panels in PANELS if cells[0].rows["kind"].isin(panels).any()), None)
    if not oldest or panels is None:
        return False
    width = max(1, -(-int(oldest + 1) // bins))
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 3.4), sharey=True, constrained_layout=True)
    for axis, (kind, title) in zip(axes, panels.items(), strict=True):
        for colour, (cell, frame) in zip(plt.rcParams["axes.prop_cycle"].by_key()["color"], aged.items(), strict=False):
            by_age = frame.assign(bin=frame["age"] // width * width + (width - 1) / 2).groupby("bin")
            means = by_age.apply(lambda rows, kind=kind: per_case(rows, kind).mean())
            axis.plot(means.index, means, marker="o", ms=3, color=colour, label=_label(cell, cells))
        floor = per_case(cells[0].rows[cells[0].rows["when"] == "before"], kind)
        if kind != "locality" and len(floor):
            axis.axhline(floor.mean(), ls=":", color="grey", label="unedited")
        axis.set(title=title, xlabel=f"later edits (bins of {width})", ylim=(0, 105))
        axis.invert_xaxis()
    axes[0].set_ylabel("score of the last test")
    axes[0].legend(fontsize=8)
    meta = cells[0].meta
    place = f"{meta['model']}, {meta['dataset']}, {meta['setting']}"
    figure.suptitle(f"What is left of an edit, by the number of edits made after it ({place})", fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True


def _label(cell: Cell, cells: Sequence[Cell]) -> str:
    seeds = {other.meta["seed"] for other in cells}
    return cell.meta["editor"] + (f", seed {cell.meta['seed']}" if len(seeds) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m kedit.plot", description="Draw retention by age of edit of a sweep's runs."
    )
    parser.add_argument(
        "place", nargs="?", default="quickstart", help="a sweep's name, or a directory of runs (default: quickstart)"
    )
    parser.add_argument("--out", default="retention.png", help="the picture's file")
    given = parser.parse_args()
    try:
        drawn = retention(find(given.place), Path(given.out))
    except InputError as error:
        sys.exit(str(error))
    sys.stdout.write(
        f"{given.out}\n" if drawn else "every case was tested right after its edit: there is no age to plot\n"
    )


if __name__ == "__main__":
    main()
