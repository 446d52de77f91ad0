"""What editing costs elsewhere: each benchmark's number, by the number of edits."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from kedit.reports.plot.plot_data import Nothing, editors
from kedit.reports.plot.style import GREY, UNEDITED, legend, looks, title
from kedit.results.abilities import abilities
from kedit.results.cells import Cell


def ability(cells: Sequence[Cell]) -> Figure:
    """A panel for each benchmark: its number by edits, one line an editor, bars of one standard error, seeds pooled;
    dotted the unedited model."""
    frames = [abilities(cell).assign(editor=cell.meta["editor"]) for cell in cells]
    asked = [frame for frame in frames if len(frame)]
    if not asked:
        raise Nothing("no benchmark was asked (eval/measures)")
    lines = pd.concat(asked)
    names = list(dict.fromkeys(zip(lines["benchmark"], lines["metric"], strict=True)))
    figure, panels = plt.subplots(1, len(names), figsize=(max(4.0, 3.3 * len(names)), 3.9), squeeze=False)
    for axis, (name, metric) in zip(panels[0], names, strict=True):
        mine = lines[lines["benchmark"] == name]
        for editor, look in looks([one for one in editors(cells) if one in set(mine["editor"])]).items():
            by_T = mine[mine["editor"] == editor].groupby("T")[["value", "stderr"]].mean()
            axis.errorbar(
                by_T.index, by_T["value"], by_T["stderr"], **look.line, marker=look.marker, ms=4, mfc=look.face,
                capsize=2, elinewidth=0.8, label=editor,
            )  # fmt: skip
        axis.axhline(mine[mine["T"] == 0]["value"].mean(), ls=":", color=GREY, label=UNEDITED)
        axis.set(title=f"{name} ({metric}, N = {mine['n'].iloc[0]})", xlabel="edits in the model")
    panels[0][0].set_ylabel("%")
    legend(figure, panels[0][0])
    title(figure, "General ability by the number of edits", cells)
    return figure
