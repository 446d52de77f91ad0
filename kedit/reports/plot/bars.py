"""What OVERTONE adds to each editor, by T (OVERTONE Fig. 3)."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from kedit.reports.plot.plot_data import Nothing, editors, horizons, kinds_of, resampled, scores, spread
from kedit.reports.plot.style import OVERTONE, legend, looks, title
from kedit.results.cells import Cell
from kedit.results.columns import COLUMNS

SETTINGS = ("single", "blocks")  # T = 1 of blocks is single


def bars(cells: Sequence[Cell]) -> Figure:
    """The mean of all metrics but fluency; filled without, outlined with OVERTONE. One panel for each dataset."""
    cells = _of_one_setting(cells)
    families = list(dict.fromkeys(editor.removesuffix(OVERTONE) for editor in editors(cells)))
    if not any(family + OVERTONE in editors(cells) for family in families):
        raise Nothing("no editor here ran with OVERTONE")
    datasets = list(dict.fromkeys(cell.meta["dataset"] for cell in cells))
    size = (max(5.4, 0.9 + len(datasets) * (0.8 + 1.1 * len(families))), 4.4)
    figure, panels = plt.subplots(1, len(datasets), figsize=size, sharey=True, squeeze=False)
    for axis, dataset in zip(panels[0], datasets, strict=True):
        kinds = _panel(axis, scores([cell for cell in cells if cell.meta["dataset"] == dataset]), families)
        axis.set(xlabel="T", title=dataset if len(datasets) > 1 else "")
        axis.set_ylim(0, 102)
        axis.grid(axis="x", visible=False)
    panels[0][0].set_ylabel("average score")
    handles = [Patch(color=look.colour, label=family) for family, look in looks(families).items()]
    handles += [
        Patch(fc="#bbbbbb", label="without OVERTONE"),
        Patch(fc="none", ec="black", lw=1.3, label="with OVERTONE"),
    ]
    legend(figure, panels[0][0], handles)
    note = f"\naverage of {_worded(kinds)}; lines: 95 % intervals over cases"
    title(figure, "With and without OVERTONE", cells, note)
    return figure


def _of_one_setting(cells: Sequence[Cell]) -> list[Cell]:
    """Those of single and blocks; where there are none, all, if they have one setting."""
    chosen = [cell for cell in cells if cell.meta["setting"] in SETTINGS] or list(cells)
    settings = {cell.meta["setting"] for cell in chosen} - {*SETTINGS}
    if len(settings) > 1:
        raise Nothing(f"the runs have several settings ({', '.join(sorted(settings))}); name a directory of one")
    return chosen


def _panel(axis: plt.Axes, frame: pd.DataFrame, families: Sequence[str]) -> list[str]:
    kinds = kinds_of(frame)
    width = 0.8 / len(families)
    for i, (family, look) in enumerate(looks(families).items()):
        for j, T in enumerate(horizons(frame)):
            at = j + (i - (len(families) - 1) / 2) * width
            _bar(axis, frame, (family, T), kinds, at, 0.92 * width, fc=look.colour, ec=look.colour, alpha=0.85)
            _bar(axis, frame, (family + OVERTONE, T), kinds, at, 0.92 * width, fc="none", ec="black", lw=1.3)
    axis.set_xticks(range(len(horizons(frame))), [str(T) for T in horizons(frame)])
    return kinds


def _bar(
    axis: plt.Axes,
    frame: pd.DataFrame,
    which: tuple[str, int],
    kinds: list[str],
    at: float,
    width: float,
    **look: Any,
) -> None:
    lines = frame.xs(which[0], level="editor").xs(which[1], level="T")[kinds] if which in _there(frame) else None
    if lines is None:
        return
    height = float(lines.mean().mean())
    with_overtone = which[0].endswith(OVERTONE)
    shift = width * (0.12 if with_overtone else -0.12)
    axis.bar(at, height, width, zorder=3 if with_overtone else 2, **look)
    line: dict[str, Any] = {"color": "black" if with_overtone else "#555555", "lw": 1, "capsize": 2, "zorder": 4}
    axis.errorbar(at + shift, height, spread(height, resampled(lines).mean(1)), fmt="none", **line)


def _there(frame: pd.DataFrame) -> pd.Index:
    return frame.index.droplevel(["seed", "step", "case"])


def _worded(kinds: Sequence[str]) -> str:
    names = [COLUMNS[kind] for kind in kinds]
    return f"{', '.join(names[:-1])} and {names[-1]}"
