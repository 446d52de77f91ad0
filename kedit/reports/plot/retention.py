"""What is left of an edit, by the number of edits made after it."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from kedit.reports.plot.plot_data import Nothing, editors, kinds_of
from kedit.reports.plot.style import GREY, UNEDITED, legend, looks, title
from kedit.results.cells import Cell
from kedit.results.columns import COLUMNS
from kedit.results.scores import per_case

BINS = 10


def ages(cell: Cell) -> pd.DataFrame:
    """The last test's rows with `age`: how many edits were made after the case's own."""
    tests = cell.rows[cell.rows["when"] == "test"]
    last = tests[tests["T"] == tests["T"].max()]
    made = cell.steps.explode("cases").drop_duplicates("cases", keep="last").set_index("cases")["edits_so_far"]
    return last.assign(age=last["edits_so_far"] - last["case"].map(made))


def retention(cells: Sequence[Cell]) -> Figure:
    """Scores of the last test by age of the edit, one line an editor, seeds pooled; dotted the unedited model."""
    longest = max(cell.meta["effective_T"] for cell in cells)
    cells = [cell for cell in cells if cell.meta["effective_T"] == longest]
    aged = {editor: _aged(cells, editor) for editor in editors(cells)}
    oldest = max((frame["age"].max() for frame in aged.values() if len(frame)), default=0)
    if not oldest > 0:
        raise Nothing("every case was tested right after its edit: no edit has an age")
    asked = {kind: True for kind in cells[0].rows["kind"]}
    kinds = [kind for kind in kinds_of(pd.DataFrame(asked, index=[0])) if kind != "portability"]
    width = max(1, -(-int(oldest + 1) // BINS))
    figure, panels = plt.subplots(1, len(kinds), figsize=(3.5 * len(kinds), 3.9), sharey=True, squeeze=False)
    for axis, kind in zip(panels[0], kinds, strict=True):
        for editor, look in looks(editors(cells)).items():
            means = _by_age(aged[editor], kind, width)
            axis.plot(means.index, means, **look.line, marker=look.marker, ms=4, mfc=look.face, label=editor)
        floor = per_case(cells[0].rows[cells[0].rows["when"] == "before"], kind)
        if kind != "locality" and len(floor):
            axis.axhline(floor.mean(), ls=":", color=GREY, label=UNEDITED)
        axis.set(title=COLUMNS[kind], xlabel=f"later edits (bins of {width})", ylim=(0, 105))
        axis.invert_xaxis()
    panels[0][0].set_ylabel("score of the last test")
    legend(figure, panels[0][0])
    title(figure, "What is left of an edit, by the number of edits made after it", cells)
    return figure


def _aged(cells: Sequence[Cell], editor: str) -> pd.DataFrame:
    """All its seeds; a seed's cases stay apart."""
    mine = [cell for cell in cells if cell.meta["editor"] == editor]
    frames = [ages(cell).assign(seed=cell.meta["seed"]) for cell in mine]
    frame = pd.concat(frames)
    return frame.assign(case=frame["seed"].astype(str) + "/" + frame["case"]) if len(frame) else frame


def _by_age(frame: pd.DataFrame, kind: str, width: int) -> pd.Series:
    bins = frame["age"] // width * width + (width - 1) / 2
    means = {middle: per_case(rows, kind).mean() for middle, rows in frame.groupby(bins)}
    return pd.Series(means, dtype=float).dropna()
