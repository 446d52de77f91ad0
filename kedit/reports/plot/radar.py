"""The metrics of each editor around a circle (KDPO Fig. 3 and 4)."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kedit.reports.plot.plot_data import BOTH, Nothing, editors, horizons, scores
from kedit.reports.plot.style import GREY, UNEDITED, legend, looks, title
from kedit.results.cells import Cell
from kedit.results.scores import UNEDITED_ROW

AXES = {  # KDPO's four, and what ROME's evaluation has in their place
    BOTH: "edit success",
    "efficacy": "efficacy",
    "paraphrase": "paraphrase",
    "portability": "portability",
    "locality": "locality",
    "neighborhood": "neighbor-\nhood",
    "fluency": "fluency",
    "consistency": "consistency",
}
SCALE = {"fluency": 0.1}  # the scale of KDPO's Fig. 4; tables show it x100
NOTES = {
    BOTH: "edit success: of the edit's prompt and its paraphrases together, as KDPO has it",
    "fluency": "fluency: n-gram entropy times 10",
}
PANELS = 4  # for as many T, the largest


def radar(cells: Sequence[Cell]) -> Figure:
    """One panel for each T; dotted the unedited model. Seeds are pooled."""
    frame = scores(cells)
    shown = horizons(frame)[-PANELS:]
    means = {_panel(frame, T) if len(shown) > 1 else "": _means(frame, T) for T in shown}
    return _figure(means, cells, "Scores of each editor")


def _panel(frame: pd.DataFrame, T: int) -> str:
    cases = frame.xs(T, level="T").groupby(["editor", "seed"]).size().max()
    return f"T = {T}, N = {cases}"


def average(cells: Sequence[Cell]) -> Figure:
    """The mean over datasets, each at its largest T, of the editors that ran on all of them (KDPO Fig. 4)."""
    datasets = {cell.meta["dataset"] for cell in cells}
    if len(datasets) < 2:
        raise Nothing("there is one dataset")
    frames = [scores([cell for cell in cells if cell.meta["dataset"] == dataset]) for dataset in sorted(datasets)]
    tables = [_means(frame, horizons(frame)[-1]) for frame in frames]
    shared = [name for name in tables[0].index if all(name in table.index for table in tables)]
    kinds = [kind for kind in tables[0] if all(kind in table for table in tables)]
    mean = sum((table.loc[shared, kinds] for table in tables[1:]), tables[0].loc[shared, kinds]) / len(tables)
    if len(shared) < 2:
        raise Nothing("no editor ran on all datasets")
    return _figure({"": mean}, cells, f"Scores of each editor, mean of {len(datasets)} datasets")


def _means(frame: pd.DataFrame, T: int) -> pd.DataFrame:
    """A line for each editor tested at this T and one for the unedited model; of the metrics that there are."""
    kinds = [kind for kind in AXES if kind in frame and frame[kind].notna().any()]
    means = frame.groupby(["editor", "T"], sort=False)[kinds].mean() * [SCALE.get(kind, 1) for kind in kinds]
    here = means.index.get_level_values("T").isin([0, T])
    return means[here].droplevel("T")


def _figure(tables: Mapping[str, pd.DataFrame], cells: Sequence[Cell], says: str) -> Figure:
    kinds = list(next(iter(tables.values())))
    if len(kinds) < 3:
        raise Nothing(f"a radar needs three metrics, these runs have {len(kinds)}")
    size = (max(6.0, 4.1 * len(tables)), 4.9)
    figure, panels = plt.subplots(1, len(tables), figsize=size, subplot_kw={"projection": "polar"}, squeeze=False)
    figure.get_layout_engine().set(w_pad=0.2)  # type: ignore[union-attr,call-arg]
    for axis, (name, means) in zip(panels[0], tables.items(), strict=True):
        _circle(axis, kinds, name)
        _around(axis, means.loc[UNEDITED_ROW], color=GREY, ls=":", label=UNEDITED)
        for editor, look in looks(editors(cells)).items():
            if editor in means.index:
                line = _around(axis, means.loc[editor], **look.line, marker=look.marker, ms=4, mfc=look.face)
                line.set_label(editor)
                axis.fill(line.get_xdata(), line.get_ydata(), color=look.colour, alpha=0.06)
    legend(figure, panels[0][-1])
    title(figure, says, cells, "".join(f"\n{NOTES[kind]}" for kind in kinds if kind in NOTES))
    return figure


def _circle(axis: Any, kinds: Sequence[str], name: str) -> None:
    angles = np.linspace(0, 2 * np.pi, len(kinds), endpoint=False)
    axis.set_theta_zero_location("N")
    axis.set_theta_direction(-1)
    axis.set_xticks(angles, [AXES[kind] for kind in kinds], fontsize=8.5)
    for angle, text in zip(angles, axis.get_xticklabels(), strict=True):
        sideways = np.sin(angle)
        text.set_horizontalalignment("center" if abs(sideways) < 0.1 else "left" if sideways > 0 else "right")
    axis.tick_params(axis="x", pad=4)
    axis.set_ylim(0, 100)
    axis.set_yticks([20, 40, 60, 80, 100], ["20", "40", "60", "80", "100"], fontsize=7, color=GREY)
    axis.set_rlabel_position(180 / len(kinds))
    axis.spines["polar"].set_color("#cccccc")
    axis.set_title(name, pad=14)


def _around(axis: plt.Axes, values: pd.Series, **kwargs: Any) -> plt.Line2D:
    there = np.asarray(values, dtype=float)
    angles = np.linspace(0, 2 * np.pi, len(there), endpoint=False)
    [line] = axis.plot([*angles, angles[0]], [*there, there[0]], **kwargs)
    return line
