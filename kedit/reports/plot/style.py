"""How every picture looks: colours that colour-blind readers tell apart, one title, one legend."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from kedit.results.cells import Cell

# Okabe and Ito (2008) without yellow and black, then three of Paul Tol's "muted": told apart by colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933", "#332288")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
GREY = "#777777"
UNEDITED, BEFORE = "unedited", "before the edit"
LAST = (UNEDITED, BEFORE)
OVERTONE = "_overtone"  # end of an editor's name: the same editor with OVERTONE's loss

plt.rcParams.update(
    {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.7,
        "figure.constrained_layout.use": True,
        "svg.hashsalt": "kedit",
    }
)


@dataclass(frozen=True)
class Look:
    """The style of one editor; with OVERTONE its twin's colour, dashed and hollow."""

    colour: str
    marker: str
    dashed: bool

    @property
    def line(self) -> dict[str, Any]:
        return {"color": self.colour, "ls": "--" if self.dashed else "-"}

    @property
    def face(self) -> str:
        return "white" if self.dashed else self.colour


def looks(editors: Sequence[str]) -> dict[str, Look]:
    """One look for each editor; beyond nine families the colours begin again with other markers."""
    families = list(dict.fromkeys(editor.removesuffix(OVERTONE) for editor in editors))
    return {editor: _look(families.index(editor.removesuffix(OVERTONE)), editor) for editor in editors}


def _look(i: int, editor: str) -> Look:
    round_ = i // len(COLOURS)
    return Look(COLOURS[i % len(COLOURS)], MARKERS[(i + round_) % len(MARKERS)], editor.endswith(OVERTONE))


def title(figure: Figure, says: str, cells: Sequence[Cell], note: str = "") -> None:
    """What is shown; below it model, dataset, setting, T, cases, seeds and options."""
    width = int(figure.get_figwidth() * 15.5)  # letters
    below = "\n".join(fill(line, width) for line in (place(cells) + note).split("\n"))
    head = figure.suptitle(says + "\n" * (below.count("\n") + 1), fontsize=11, fontweight="bold")
    figure.add_artist(
        Annotation(
            below, (0.5, 1), (0, -17), xycoords=head, textcoords="offset points", ha="center", va="top", size=8.5
        )
    )


def place(cells: Sequence[Cell]) -> str:
    metas = [cell.meta for cell in cells]

    def told(key: str) -> str:
        return ", ".join(map(str, sorted({meta[key] for meta in metas})))

    tests = {int(T) for cell in cells for T in cell.rows.loc[cell.rows["when"] == "test", "T"].unique()}
    N = sorted({meta["cases"] for meta in metas})
    cases = str(N[0]) if len(N) == 1 else f"{N[0]} to {N[-1]}"
    parts = [f"{told('model')} on {told('dataset')}", told("setting")]
    parts += [f"T = {', '.join(map(str, sorted(tests)))}"] if tests else []
    parts += [f"N = {cases} cases"]
    seeds = {meta["seed"] for meta in metas}
    parts += [f"{len(seeds)} seeds"] if len(seeds) > 1 else []
    options = {meta["overrides"].replace(",", ", ") for meta in metas if meta.get("overrides")}
    text = "  ·  ".join(parts)
    return text + "".join(f"\n{option if len(option) <= 110 else option[:107] + '...'}" for option in sorted(options))


def legend(figure: Figure, axis: plt.Axes, more: Sequence[Artist] = ()) -> None:
    """Below the figure, each name once, the unedited model last, in as many columns as its width has room for."""
    named = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True)) if axis else {}
    named |= {str(artist.get_label()): artist for artist in more}
    named = dict(sorted(named.items(), key=lambda item: item[0] in LAST))
    columns = min(len(named), max(2, int(figure.get_figwidth() * 11 / (6 + max(map(len, named))))))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns)


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
