"""What happens over the optimiser steps of an edit (OVERTONE Fig. 1 and 2), from kedit/evaluation/step_trace.py."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kedit.reports.plot.plot_data import Nothing, editors
from kedit.reports.plot.style import BEFORE, COLOURS, GREY, legend, looks, title
from kedit.results.bootstrap import interval, resampled_means
from kedit.results.cells import Cell
from kedit.results.columns import COLUMNS

EDIT = ("reliability", "efficacy")  # kinds that ask an edit's own prompt
POSITIONS = 8  # the first tokens of an answer
ROWS = 4  # editors that one picture of tokens has
STOPPED = "an edit that has stopped keeps its last value"


def losses(cells: Sequence[Cell]) -> Figure:
    """Loss of the answers to each kind of question after each optimiser step: mean over edits with its 95 % band.

    OVERTONE Fig. 1 shows generality and portability, of LoRA.
    """
    traces = _traces(cells)
    kinds = [kind for kind in COLUMNS if any(kind in frame["kind"].array for frame in traces.values())]
    figure, panels = plt.subplots(1, len(kinds), figsize=(max(5.5, 0.6 + 3.6 * len(kinds)), 4.2), squeeze=False)
    longest = max(int(frame["at"].max()) for frame in traces.values())
    for axis, kind in zip(panels[0], kinds, strict=True):
        for editor, look in looks(list(traces)).items():
            by_case = over_steps(traces[editor], kind, longest)
            if by_case.empty:
                continue
            low, high = zip(*(interval(means) for means in resampled_means(by_case).T), strict=True)
            axis.plot(by_case.columns, by_case.mean(), **look.line, label=editor)
            axis.fill_between(by_case.columns, low, high, color=look.colour, alpha=0.13, lw=0)
            axis.axhline(by_case[0].mean(), color=GREY, ls=":", lw=1.2, label=BEFORE, zorder=1)
        axis.set(title=COLUMNS[kind], xlabel="optimiser steps")
        axis.set_ylim(bottom=0)
    panels[0][0].set_ylabel("loss of the answer\n(mean $-$log p of its tokens)")
    legend(figure, panels[0][0])
    title(figure, "Loss over the steps of an edit", cells, f"\nbands: 95 % intervals over cases; {STOPPED}")
    return figure


def tokens(cells: Sequence[Cell], case: str | None = None) -> Figure:
    """Initial loss of each token of the edits' answers, and their underfitting degree, one row an editor.

    Underfitting degree (OVERTONE §2.3): log-likelihood of what the model greedily said before the edit, at the same
    place, less that of the edit's token now; negative: overfitted. The middle shows the first step at which half of
    the tokens are (the last, where they never are). `case`: of this edit alone, with its tokens' texts.
    """
    parts = {editor: by_token(frame, case) for editor, frame in _traces(cells).items()}
    parts = {editor: frame for editor, frame in parts.items() if len(frame)}
    if not parts:
        raise Nothing("no edit's own prompt was followed" if case is None else f"no trace of a case {case!r}")
    shown = dict(list(parts.items())[:ROWS])
    size = (11.4, 0.9 + 2.75 * len(shown))
    figure, rows = plt.subplots(len(shown), 3, figsize=size, squeeze=False, width_ratios=[1, 1, 1.25])
    for panels, (editor, frame) in zip(rows, shown.items(), strict=True):
        _initial(panels[0], frame, editor)
        _when_half(panels[1], frame)
        _degree(panels[2], frame)
    for axis in rows[-1][:2]:
        axis.set_xlabel("token of the answer")
    rows[-1][2].set_xlabel("optimiser steps")
    legend(figure, max((panels[2] for panels in rows), key=lambda axis: len(axis.lines)))
    note = f"case {case}" if case else f"means over edits; {STOPPED}"
    title(figure, "Initial loss and underfitting degree of an answer's tokens", cells, f"\ndashed: means; {note}")
    return figure


# --- from traces to numbers ------------------------------------------------------------------------------------------


def _traces(cells: Sequence[Cell]) -> dict[str, pd.DataFrame]:
    """By editor; `edit` tells apart the edits of all its cells."""
    found: dict[str, list[pd.DataFrame]] = {editor: [] for editor in editors(cells)}
    for i, cell in enumerate(cells):
        if len(cell.traces):
            edit = f"{i}/" + cell.traces["step"].astype(str) + "/" + cell.traces["case"]
            found[cell.meta["editor"]].append(cell.traces.assign(edit=edit))
    if not any(found.values()):
        raise Nothing("no traces; run with e.g. eval.each_step=[reliability,generality,portability]")
    return {editor: pd.concat(frames, ignore_index=True) for editor, frames in found.items() if frames}


def over_steps(frame: pd.DataFrame, kind: str, steps: int) -> pd.DataFrame:
    """Loss of one kind by edit (lines) and optimiser step (columns, 0 to `steps`): mean over its groups of the mean
    over a group's probes; an edit that has stopped keeps its last value."""
    mine = frame[frame["kind"] == kind]
    groups = mine.groupby(["edit", "at", "group"])["nll"].mean()
    return groups.groupby(["edit", "at"]).mean().unstack("at").reindex(columns=range(steps + 1)).ffill(axis=1)


def by_token(frame: pd.DataFrame, case: str | None = None) -> pd.DataFrame:
    """One line a token of an edit's answer and optimiser step: edit, at, position (from 1), token, loss, degree."""
    mine = frame[frame["kind"].isin(EDIT) & ((frame["case"] == case) | (case is None))].reset_index(drop=True)
    mine["edit"] = mine["edit"] + "/" + mine["probe"].astype(str)
    first = mine[mine["at"] == 0].set_index("edit")
    mine["own"], mine["token"] = mine["edit"].map(first["own_logprob"]), mine["edit"].map(first["tokens"])
    mine["position"] = [list(range(1, len(values) + 1)) for values in mine["logprob"]]
    long = mine.explode(["logprob", "own", "token", "position"])[["edit", "at", "position", "token", "logprob", "own"]]
    return long.assign(loss=-long["logprob"].astype(float), degree=(long["own"] - long["logprob"]).astype(float))


def degrees(frame: pd.DataFrame) -> pd.DataFrame:
    """Underfitting degree by token (lines: edit, position) and optimiser step (columns)."""
    return frame.set_index(["edit", "position", "at"])["degree"].unstack("at").ffill(axis=1)


def half_overfitted(table: pd.DataFrame) -> int:
    """The first step at which half of the tokens have a negative degree; the last where there is none."""
    share = (table < 0).mean()
    return int(share.index[share >= 0.5][0]) if (share >= 0.5).any() else int(table.columns[-1])


# --- drawing ---------------------------------------------------------------------------------------------------------


def _initial(axis: plt.Axes, frame: pd.DataFrame, editor: str) -> None:
    first = frame[frame["at"] == 0]
    _by_position(axis, first, first.set_index(["edit", "position"])["loss"])
    axis.set(title=f"{editor}: initial loss", ylabel="$-$log p")


def _when_half(axis: plt.Axes, frame: pd.DataFrame) -> None:
    table = degrees(frame)
    at = half_overfitted(table)
    share = (table[at] < 0).mean()
    _by_position(axis, frame[frame["at"] == 0], table[at])
    axis.axhline(0, color="black", lw=0.8)
    moment = f"step {at}" if share >= 0.5 else f"the last step, {at}"
    axis.set(title=f"{moment}: {100 * share:.0f} % overfitted", ylabel="underfitting degree")


def _by_position(axis: plt.Axes, first: pd.DataFrame, values: pd.Series) -> None:
    """Every token a dot above its place in the answer, their mean a bar; dashed the mean of all."""
    positions = values.index.get_level_values("position").astype(int)
    shown = values[positions <= POSITIONS]
    places = shown.index.get_level_values("position").astype(int)
    means = shown.groupby(places).mean()
    axis.bar(means.index, means, 0.7, color=COLOURS[5], alpha=0.55, lw=0)
    if first["edit"].nunique() > 1:
        jitter = np.random.default_rng(0).uniform(-0.22, 0.22, len(shown))
        axis.plot(places + jitter, shown, ".", ms=3.5, color=COLOURS[0], alpha=0.55)
    axis.axhline(values.mean(), color=COLOURS[1], ls="--", lw=1.3)
    texts = [repr(token)[1:-1] for token in first["token"]] if first["edit"].nunique() == 1 else means.index
    axis.set_xticks(means.index, list(texts)[: len(means)])
    axis.grid(axis="x", visible=False)


def _degree(axis: plt.Axes, frame: pd.DataFrame) -> None:
    table = degrees(frame)
    positions = table.index.get_level_values("position").astype(int)
    means = table.groupby(positions).mean().loc[:POSITIONS]
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(means)))
    for colour, (position, values) in zip(colours, means.iterrows(), strict=True):
        axis.plot(values.index, values, color=colour, label=f"token {position}")
    axis.plot(table.columns, table.mean(), color=COLOURS[1], ls="--", label="all")
    axis.axhline(0, color="black", lw=0.8)
    low, high = axis.get_ylim()
    axis.set(title="over the steps of an edit", ylim=(min(low, -0.12 * high), high))
    below: dict[str, Any] = {
        "xycoords": ("axes fraction", "data"),
        "textcoords": "offset points",
        "ha": "right",
        "va": "top",
    }
    axis.annotate("overfitted", (1, 0), (0, -2), size=7.5, color=GREY, **below)
