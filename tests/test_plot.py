"""Pictures show the numbers of the rows: what is drawn is read back from the figure and compared by hand."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from kedit.reports.plot import PICTURES, draw
from kedit.reports.plot.bars import bars
from kedit.reports.plot.plot_data import Nothing, resampled, scores, spread
from kedit.reports.plot.radar import average, radar
from kedit.reports.plot.retention import ages, retention
from kedit.reports.plot.scatter import scatter
from kedit.reports.plot.step_curves import by_token, degrees, half_overfitted, losses, over_steps, tokens
from kedit.reports.plot.style import looks
from kedit.results.cells import Cell, find

KINDS = {"reliability": 1.0, "generality": 0.5, "portability": 0.25, "locality": 0.75}


@pytest.fixture(autouse=True)
def _close() -> Any:
    yield
    plt.close("all")


def made(
    folder: Path, editor: str = "one", *, T: int = 4, scale: float = 1.0, traces: Sequence[Any] = (), **more: Any
) -> Cell:
    """A finished cell of T cases edited one after another; case i answers its kinds at KINDS times `scale`."""
    meta = {"model": "m", "dataset": "d", "setting": "sequential", "order_seed": None, "overrides": "", "versions": {}}
    meta |= {"editor": editor, "seed": 0, "effective_T": T, "cases": T, "T": T, "kinds": [*KINDS, "fluency"]} | more
    path = folder / "-".join(str(meta[key]) for key in ("model", "dataset", "editor", "setting", "T", "seed"))
    path.mkdir(parents=True)
    rows = [
        row(i, kind, when, T, scale) for when in ("before", "test") for i in range(T) for kind in (*KINDS, "fluency")
    ]
    steps = [{"step": 0, "edits_so_far": 0, "cases": []}]
    steps += [{"step": i + 1, "edits_so_far": i + 1, "cases": [f"c{i}"]} for i in range(T)]
    for name, lines in (("rows", rows), ("steps", steps), ("traces", list(traces))):
        if lines:
            (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "meta.json").write_text(json.dumps(meta))
    return Cell(path)


def row(i: int, kind: str, when: str, T: int, scale: float) -> dict[str, Any]:
    place = {"case": f"c{i}", "kind": kind, "group": "", "probe": 0, "when": when, "scoring": "forced"}
    place |= {"step": 0, "edits_so_far": 0} if when == "before" else {"step": T, "edits_so_far": T, "T": T}
    if kind == "fluency":
        return place | {"scoring": "generate", "entropy": 5.0}
    return place | {"token": 0.1 if when == "before" else KINDS[kind] * scale, "exact": 0}


def trace(step: int, at: int, kind: str, logprob: list[float], **more: Any) -> dict[str, Any]:
    place = {"step": step, "edits_so_far": step, "case": f"c{step}", "kind": kind, "group": "", "probe": 0, "at": at}
    return place | {"nll": -sum(logprob) / len(logprob), "logprob": logprob} | more


TRACES = [  # edit 1 takes two steps, edit 2 one
    trace(1, 0, "reliability", [-4.0, -1.0], tokens=[" a", "b"], own_logprob=[-1.0, -0.5]),
    trace(1, 1, "reliability", [-2.0, -0.4]),
    trace(1, 2, "reliability", [-0.5, -0.1]),
    trace(2, 0, "reliability", [-3.0], tokens=[" c"], own_logprob=[-2.0]),
    trace(2, 1, "reliability", [-1.0]),
    trace(1, 0, "portability", [-5.0]),
    trace(1, 1, "portability", [-3.0]),
    trace(1, 2, "portability", [-4.0]),
    trace(2, 0, "portability", [-1.0]),
    trace(2, 1, "portability", [-2.0]),
]


def line(figure: Any, label: str, panel: int = 0) -> list[float]:
    [found] = [one for one in figure.axes[panel].lines if one.get_label() == label]
    return list(found.get_ydata())


def test_a_radar_shows_the_means_and_the_unedited_model(tmp_path: Path) -> None:
    figure = radar([made(tmp_path, "one"), made(tmp_path, "two", scale=0.5)])
    # edit success of prompt and paraphrase together, portability, locality, fluency times 10; and around to the first
    assert line(figure, "one") == pytest.approx([75, 25, 75, 50, 75])
    assert line(figure, "two") == pytest.approx([37.5, 12.5, 37.5, 50, 37.5])
    assert line(figure, "unedited") == pytest.approx([10, 10, 10, 50, 10])
    said = figure.get_suptitle() + figure.artists[0].get_text()
    for part in ("m on d", "sequential", "T = 4", "N = 4 cases", "fluency: n-gram entropy times 10"):
        assert part in said


def test_an_average_over_datasets_is_of_editors_that_ran_on_all(tmp_path: Path) -> None:
    cells = [made(tmp_path, "one"), made(tmp_path, "one", dataset="e", scale=0.5), made(tmp_path, "two")]
    figure = average(cells)
    assert line(figure, "one") == pytest.approx([56.25, 18.75, 56.25, 50, 56.25])
    assert "two" not in [one.get_label() for one in figure.axes[0].lines]
    with pytest.raises(Nothing, match="one dataset"):
        average(cells[:1])


def test_bars_stand_at_the_average_and_with_overtone_are_outlined(tmp_path: Path) -> None:
    cells = [
        made(tmp_path, e, T=T, setting="blocks", scale=s) for e, s in (("x", 0.4), ("x_overtone", 0.8)) for T in (2, 4)
    ]
    figure = bars([*cells, made(tmp_path, "x", T=1, setting="single", scale=1.0)])
    drawn = [(patch.get_height(), patch.get_facecolor()[3]) for patch in figure.axes[0].patches]
    assert drawn == [
        (pytest.approx(100 * 0.625 * s), a) for s, a in ((1, 0.85), (0.4, 0.85), (0.8, 0), (0.4, 0.85), (0.8, 0))
    ]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["1", "2", "4"]
    with pytest.raises(Nothing, match="OVERTONE"):
        bars([made(tmp_path, "y")])


def test_a_point_of_the_scatter_is_success_and_locality(tmp_path: Path) -> None:
    figure = scatter([made(tmp_path, "one", scale=0.8), made(tmp_path, "two")])
    points = {
        tuple(round(float(v[0]), 6) for v in one.get_data()) for one in figure.axes[0].lines if one.get_marker() == "o"
    }
    assert points == {(80.0, 60.0), (100.0, 75.0)}
    with pytest.raises(Nothing, match="one editor"):
        scatter([made(tmp_path, "three")])


def test_age_is_the_number_of_later_edits(tmp_path: Path) -> None:
    aged = ages(made(tmp_path)).drop_duplicates("case")
    assert dict(zip(aged["case"], aged["age"], strict=True)) == {"c0": 3, "c1": 2, "c2": 1, "c3": 0}


def test_retention_pools_seeds_and_needs_an_age(tmp_path: Path) -> None:
    figure = retention([made(tmp_path, seed=1), made(tmp_path, seed=2, scale=0.5)])
    assert line(figure, "one") == pytest.approx([75] * 4)
    assert line(figure, "unedited") == pytest.approx([10, 10])
    mass = made(tmp_path, setting="mass")
    mass.__dict__["steps"] = mass.steps.assign(edits_so_far=4)
    with pytest.raises(Nothing, match="right after its edit"):
        retention([mass])


def test_losses_over_steps_keep_the_last_value_of_an_edit_that_has_stopped(tmp_path: Path) -> None:
    figure = losses([made(tmp_path, traces=TRACES)])
    assert [axis.get_title() for axis in figure.axes] == ["edit success", "portability"]
    assert line(figure, "one", 0) == pytest.approx([(2.5 + 3) / 2, (1.2 + 1) / 2, (0.3 + 1) / 2])
    assert line(figure, "one", 1) == pytest.approx([3, 2.5, 3])
    with pytest.raises(Nothing, match="each_step"):
        losses([made(tmp_path, "two")])


def test_the_underfitting_degree_by_hand(tmp_path: Path) -> None:
    cell = made(tmp_path, traces=TRACES)
    table = degrees(by_token(cell.traces.assign(edit=cell.traces["case"])))
    # what the model said before the edit less the edit's token now: [-1 + 4, -0.5 + 1], then [-2 + 3]
    assert table[0].tolist() == pytest.approx([3, 0.5, 1])
    assert table[1].tolist() == pytest.approx([1, -0.1, -1])
    assert table[2].tolist() == pytest.approx([-0.5, -0.4, -1])
    assert half_overfitted(table) == 1
    figure = tokens([cell])
    assert [axis.get_title() for axis in figure.axes][1] == "step 1: 67 % overfitted"
    assert [patch.get_height() for patch in figure.axes[0].patches] == pytest.approx([3.5, 1])
    alone = tokens([cell], case="c1")
    assert [text.get_text() for text in alone.axes[0].get_xticklabels()] == [" a", "b"]
    assert over_steps(cell.traces.assign(edit=cell.traces["case"]), "locality", 2).empty


def test_intervals_are_of_cases_drawn_again(tmp_path: Path) -> None:
    frame = scores([made(tmp_path)]).loc["one"][["reliability"]]
    assert spread(100.0, resampled(frame)[:, 0]) == ([0], [0])
    frame.iloc[:2] = 0
    [below], [above] = spread(50.0, resampled(frame)[:, 0])
    assert 25 <= below <= 50
    assert 25 <= above <= 50


def test_overtone_has_its_twins_colour_dashed(tmp_path: Path) -> None:
    given = looks([*(f"e{i}" for i in range(9)), "e3_overtone", "e9"])
    assert given["e3_overtone"].colour == given["e3"].colour
    assert given["e3_overtone"].dashed
    assert len({to_hex(look.colour) for look in given.values()}) == 9
    assert (given["e9"].colour, given["e9"].marker) != (given["e0"].colour, given["e0"].marker)


def test_cells_that_may_not_stand_together_have_files_of_their_own(tmp_path: Path) -> None:
    cells = [made(tmp_path / "runs", e, dataset=d) for e in ("one", "two") for d in ("d", "e")]
    drawn = list(draw(cells, tmp_path / "out"))
    names = sorted(one.path.name for one in drawn if one.path)
    per_dataset = [f"{name}-{d}.png" for name in ("radar", "retention", "scatter") for d in ("d", "e")]
    assert names == sorted(["average.png", *per_dataset])
    assert {one.name for one in drawn if one.reason} == {"ability", "bars", "losses", "tokens"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(names)
    assert len(find(tmp_path / "runs")) == 4


def plot(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kedit.plot", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_line(tmp_path: Path) -> None:
    made(tmp_path / "runs")
    done = plot(tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(tmp_path / "runs" / "radar.png")
    assert "no bars: no editor here ran with OVERTONE" in done.stdout
    assert plot("radar", tmp_path / "runs", "--out", tmp_path / "one.svg").returncode == 0
    assert (tmp_path / "one.svg").read_text().startswith("<?xml")
    for arguments, said in (
        ([tmp_path / "nowhere"], "no run there"),
        ([tmp_path / "runs", "rader"], "give one sweep or directory; pictures are radar"),
        ([tmp_path / "runs", "--out", "x.png"], f"{len(PICTURES)} pictures do not fit one file"),
        ([tmp_path / "runs", "--case", "c9"], "no trace"),
    ):
        refused = plot(*arguments)
        assert refused.returncode == 1
        assert said in refused.stderr + refused.stdout
        assert "Traceback" not in refused.stderr


def test_pictures_need_no_model() -> None:
    code = "import sys, kedit.reports.plot.cli; print({'torch', 'transformers', 'wandb'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_runs_that_were_not_tested_yet_are_left_out(tmp_path: Path) -> None:
    whole, begun = made(tmp_path / "runs"), made(tmp_path / "runs", "two")
    (begun.directory / "rows.jsonl").write_text("")
    drawn = list(draw([whole, Cell(begun.directory)], tmp_path / "out"))
    assert [one.reason for one in drawn if one.name == "scatter"] == ["there is one editor; compare at least two"]
    with pytest.raises(Nothing, match="nothing was tested"):
        list(draw([Cell(begun.directory)], tmp_path / "out"))
