"""What was recalled, counted by hand: of single edits, of a memory that grows, of a filter that errs."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_cells import make_cell

from kedit.common.errors import InputError
from kedit.reports.dashboard import routing_of
from kedit.reports.table.routing_table import grid, tables, write
from kedit.results.cells import Cell
from kedit.results.routing import edit_numbers, routing
from kedit.run.main import show_cells

Found = tuple[int, float, int]  # edit, probability, accepted


def asked(case: str, kind: str, found: Sequence[Found], group: str = "", probe: int = 0, **more: Any) -> dict[str, Any]:
    """A question of the test after step 3, all of whose accepted strings but the first were left out of the prompt."""
    names = ("edit", "probability", "accepted")
    retrieved = [dict(zip(names, one, strict=True)) | {"form": "qa", "cosine": 0.5} for one in found]
    in_context = ["text" for *_, accepted in found if accepted][:1]
    place = {"step": 3, "edits_so_far": 3, "when": "test", "T": 3, "scoring": "forced", "token": 1.0, "exact": 1}
    route = {"retrieved": retrieved, "in_context": in_context, "in_scope": int(bool(in_context)), "adapter": None}
    return place | {"case": case, "kind": kind, "group": group, "probe": probe, "route": route} | more


def step(number: int, cases: Sequence[str], edits_so_far: int, **more: Any) -> dict[str, Any]:
    return {
        "step": number,
        "edits_so_far": edits_so_far,
        "cases_so_far": edits_so_far,
        "cases": list(cases),
        "edit_s": 1.0,
    } | more


def cell_of(runs: Path, rows: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]], **meta: Any) -> Cell:
    made = make_cell(runs, {"reliability": [1.0]}, editor="kedas", T=3, **meta)
    for name, records in (("rows", rows), ("steps", steps)):
        (made.directory / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return made


SEQUENTIAL = [step(0, [], 0), step(1, ["a"], 1), step(2, ["b"], 2), step(3, ["c"], 3)]
ROWS = [
    asked("a", "reliability", [(0, 0.9, 1), (1, 0.1, 0)]),  # found, accepted, injected
    asked("b", "reliability", [(0, 0.8, 1), (1, 0.9, 1)]),  # its own is the second, accepted, not in the prompt
    asked("c", "reliability", [(2, 0.2, 0), (0, 0.1, 0)]),  # found, refused
    asked("a", "portability", [(1, 0.7, 1), (2, 0.1, 0)], "alias"),  # not found; another is accepted
    asked("b", "portability", [(1, 0.9, 1), (1, 0.8, 1)], "one_hop"),  # two strings of its own
    asked("a", "locality", [(0, 0.9, 1), (1, 0.2, 0)], "same_subject"),  # a false accept
    asked("b", "locality", [(1, 0.1, 0), (0, 0.1, 0)], "geo"),
    asked("a", "locality", [(2, 0.3, 0), (0, 0.1, 0)], "geo"),
    asked("c", "fluency", [(2, 0.9, 1)], scoring="generate"),
]
NOT_COUNTED = [
    asked("a", "reliability", [(1, 0.9, 1)], scoring="generate"),  # the same question, scored in another way
    asked("a", "reliability", [(1, 0.9, 1)], when="edit", step=1, T=None),
    asked("a", "reliability", [], when="before", step=0, T=None),
]


@pytest.fixture
def sequential(tmp_path: Path) -> Cell:
    return cell_of(tmp_path / "sweep", ROWS + NOT_COUNTED, SEQUENTIAL)


def by_place(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.set_index(["kind", "group"]).drop(columns="T")


def test_every_measure_by_hand(sequential: Cell) -> None:
    lines = by_place(routing(sequential))
    nan = pytest.approx(float("nan"), nan_ok=True)
    third = 100 / 3
    # of the three that are accepted two are the own ones; the third, a's, stands in b's prompt
    assert lines.loc["reliability", ""].tolist() == [3, 100, 2 * third, 2 * third, 2 * third, third, 2 * third]
    assert lines.loc["portability", ""].tolist() == [2, 50, 50, 100, 2 * third, 50, 100]
    assert lines.loc["portability", "alias"].tolist() == [1, 0, 0, nan, 0, 0, 100]
    assert lines.loc["portability", "one_hop"].tolist() == [1, 100, 100, 100, 100, 100, 100]
    assert lines.loc["locality", ""].tolist() == [3, nan, nan, nan, nan, nan, third]
    assert lines.loc["locality", "geo"].tolist() == [2, nan, nan, nan, nan, nan, 0]
    assert lines.loc["all", ""].tolist() == [8, 80, 60, 75, pytest.approx(400 / 7), 40, nan]
    assert set(lines.index.get_level_values("kind")) == {"all", "reliability", "portability", "locality"}


def gated(case: str, kind: str, probe: int, in_scope: int, **told: Any) -> dict[str, Any]:
    """A question that a gate decided about."""
    place = {"step": 3, "edits_so_far": 3, "when": "test", "T": 3, "scoring": "forced", "token": 1.0, "exact": 1}
    return place | {"case": case, "kind": kind, "group": "", "probe": probe, "route": {"in_scope": in_scope} | told}


def test_a_gate_is_counted_as_a_filter_of_the_nearest_entry(tmp_path: Path) -> None:
    rows = [
        gated("a", "reliability", 0, 1, edit=0, slot=0, distance=0.1),
        gated("b", "reliability", 0, 0, edit=1, slot=1, distance=9.0),  # its own is nearest, and stays shut
        gated("c", "reliability", 0, 1, edit=1, slot=1, distance=0.2),  # another's opens
        gated("a", "locality", 0, 1, edit=2, slot=2, distance=0.3),
        gated("a", "locality", 1, 0, edit=2, slot=2, distance=8.0),
    ]
    nan, third = pytest.approx(float("nan"), nan_ok=True), 100 / 3
    lines = by_place(routing(cell_of(tmp_path / "grace", rows, SEQUENTIAL)))
    assert lines.loc["reliability", ""].tolist() == [3, 2 * third, 2 * third, 50, 50, third, 2 * third]
    assert lines.loc["locality", ""].tolist() == [2, nan, nan, nan, nan, nan, 50]
    assert lines.loc["all", ""].tolist() == [5, 2 * third, 2 * third, 50, third, third, nan]


def test_a_gate_whose_entry_holds_all_edits(tmp_path: Path) -> None:
    """WISE: right where the question is about an edit."""
    rows = [
        gated("a", "reliability", 0, 1, slot=0, distance=3.0),
        gated("b", "reliability", 0, 0, slot=0, distance=1.0),
    ]
    rows.append(gated("c", "locality", 0, 1, slot=0, distance=3.0))
    lines = by_place(routing(cell_of(tmp_path / "wise", rows, SEQUENTIAL)))
    assert lines.loc["reliability", ""].tolist() == [2, 100, 100, 50, 100, 50, 50]
    assert lines.loc["all", "filter precision"].item() == 50


def test_numbers_begin_again_after_a_restore_and_skip_what_failed() -> None:
    steps = [step(0, [], 0), step(1, ["a", "b"], 2), step(2, ["c"], 3, failed=1), step(3, ["d"], 4)]
    steps += [step(4, ["a"], 1), step(5, ["b"], 2)]  # after a restore
    found = edit_numbers(pd.DataFrame(steps))
    assert found[["step", "case", "edit"]].to_numpy().tolist() == [
        [1, "a", 0],
        [1, "b", 1],
        [3, "d", 2],
        [4, "a", 0],
        [5, "b", 1],
    ]


def test_single_edits_are_all_number_0(tmp_path: Path) -> None:
    steps = [step(0, [], 0), *(step(i, [case], 1) for i, case in enumerate("abc", 1))]
    steps[3]["failed"] = 1
    rows = [asked(case, "reliability", [(0, 0.9, 1)], step=i, T=1) for i, case in enumerate("ab", 1)]
    undone = asked("c", "reliability", [], step=3, T=1)
    del undone["route"]  # nothing is stored, so nothing is asked through the memory
    cell = cell_of(tmp_path / "sweep", [*rows, undone], steps, setting="single")
    line = by_place(routing(cell)).loc["reliability", ""]
    assert line["N"] == 3
    assert line["recall@k"] == line["in context"] == line["in scope"] == pytest.approx(200 / 3)
    assert line["filter recall"] == line["filter precision"] == 100


def test_without_a_filter_its_numbers_are_dashes(tmp_path: Path) -> None:
    rows = [asked("a", "reliability", [(0, 0.9, 1)]), asked("a", "locality", [(0, 0.9, 1)])]
    for row in rows:
        del row["route"]["retrieved"][0]["probability"]
    cell = cell_of(tmp_path / "sweep", rows, SEQUENTIAL)
    [(caption, table)] = tables([cell])
    [overall, reliability, locality] = grid(caption, table).lines
    assert [entry.text for entry in reliability.entries] == ["1", "100.0", "100.0", "-", "-", "100.0", "100.0"]
    assert [entry.text for entry in locality.entries] == ["1", "-", "-", "-", "-", "-", "100.0"]
    assert overall.head == ("kedas", "3", "all", "")


def test_seeds_are_pooled_and_editors_without_a_memory_left_out(sequential: Cell, tmp_path: Path) -> None:
    other = cell_of(tmp_path / "sweep", ROWS[:1], SEQUENTIAL, seed=102)
    tuned = make_cell(tmp_path / "sweep", {"reliability": [1.0]}, editor="ft_m", T=3)
    assert routing(tuned).empty
    assert routing_of(tuned) == {}
    [(_, table)] = tables([sequential, other, tuned])
    line = table[table["kind"] == "reliability"].iloc[0]
    assert (line["model"], line["N"], line["seeds"]) == ("kedas", 2, 2)
    assert line["filter recall"] == pytest.approx((200 / 3 + 100) / 2)
    write([tuned], tmp_path)
    assert not (tmp_path / "routing.md").exists()


def test_it_is_written_and_printed_beside_the_scores(sequential: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    home = sequential.directory
    write([sequential], home)
    assert "| kedas | 3 | portability | one_hop | 1 | 100.0 |" in (home / "routing.md").read_text()
    assert len(pd.read_csv(home / "routing.csv")) == 8
    show_cells([home])
    assert "same_subject" in capsys.readouterr().out
    shown = subprocess.run(
        [sys.executable, "-m", "kedit.table", home, "--routing", "--format", "csv"], capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert "kedas,3,locality,geo,2.0" in shown.stdout


def test_where_nothing_is_recalled_the_table_says_so(tmp_path: Path) -> None:
    from kedit.reports.table.cli import parser
    from kedit.reports.table.show import output

    make_cell(tmp_path / "sweep", {"reliability": [1.0]}, editor="ft_m", T=3)
    with pytest.raises(InputError, match="no run there recalls edits from a memory"):
        output(parser().parse_args([str(tmp_path / "sweep"), "--routing"]))


def test_wandbs_names(sequential: Cell) -> None:
    found = routing_of(sequential)
    assert found == {
        "routing_recall": 80,
        "routing_recall_at_1": 60,
        "routing_filter_recall": 75,
        "routing_filter_precision": pytest.approx(400 / 7),
        "routing_in_context": 40,
        "routing_rate_reliability": pytest.approx(200 / 3),
        "routing_rate_portability": 100,
        "routing_rate_locality": pytest.approx(100 / 3),
    }
