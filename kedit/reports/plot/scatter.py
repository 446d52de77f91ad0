"""Locality against edit success: what an edit costs elsewhere."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kedit.reports.plot.plot_data import Nothing, editors, horizons, resampled, scores, spread
from kedit.reports.plot.style import Look, legend, looks, title
from kedit.results.cells import Cell
from kedit.results.columns import COLUMNS
from kedit.results.scores import UNEDITED_ROW

PAIRS = (("reliability", "locality"), ("efficacy", "neighborhood"))
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*")  # one a T


def scatter(cells: Sequence[Cell]) -> Figure:
    """One point for each editor and T with the half-widths of its 95 % intervals over cases; small: its seeds."""
    frame = scores(cells)
    pair = next((list(pair) for pair in PAIRS if {*pair} <= {*frame.columns}), None)
    if pair is None:
        raise Nothing("these runs did not ask for both success and locality")
    if len(editors(cells)) < 2:
        raise Nothing("there is one editor; compare at least two")
    figure, axis = plt.subplots(figsize=(6.6, 5.2))
    appearance, shapes = looks(editors(cells)), dict(zip(horizons(frame), SHAPES, strict=False))
    for editor, look in appearance.items():
        lines = frame.loc[editor][pair]
        way = lines.groupby("T").mean()
        axis.plot(way[pair[0]], way[pair[1]], color=look.colour, lw=0.9, alpha=0.5, zorder=1)
        for T, shape in shapes.items():
            if T in way.index:
                _point(axis, lines.loc[T], look, shape)
    axis.set(xlabel=COLUMNS[pair[0]], ylabel=COLUMNS[pair[1]])
    axis.margins(0.08)
    axis.set_xlim(right=min(axis.get_xlim()[1], 102))
    axis.set_ylim(top=min(axis.get_ylim()[1], 102))
    floor = frame.loc[UNEDITED_ROW][pair].mean()
    note = f"\nbars: 95 % intervals over cases; the unedited model: {floor.iloc[0]:.1f}, {floor.iloc[1]:.1f}"
    handles = [Line2D([], [], marker="o", ls="", color=k.colour, mfc=k.face, label=e) for e, k in appearance.items()]
    if len(shapes) > 1:
        handles += [
            Line2D([], [], marker=s, ls="", color="#333333", mfc="none", label=f"T = {T}") for T, s in shapes.items()
        ]
    legend(figure, axis, handles)
    title(figure, "What an edit costs elsewhere: locality against success", cells, note)
    return figure


def _point(axis: plt.Axes, lines: pd.DataFrame, look: Look, shape: str) -> None:
    seeds = lines.groupby("seed").mean()
    if len(seeds) > 1:
        axis.plot(*seeds.to_numpy().T, marker=shape, ms=3, ls="", color=look.colour, alpha=0.5, zorder=2)
    (x, y), means = lines.mean(), resampled(lines)
    bars: dict[str, Any] = {
        "xerr": spread(x, means[:, 0]),
        "yerr": spread(y, means[:, 1]),
        "elinewidth": 0.9,
        "capsize": 2,
    }
    axis.errorbar(x, y, **bars, fmt=shape, ms=7, color=look.colour, mfc=look.face, zorder=4)
