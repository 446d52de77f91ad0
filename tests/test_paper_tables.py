"""The papers' tables in the papers' layout, beside numbers measured here that are known by hand."""

import csv
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from made_cells import make_cell

from kedit.common.errors import InputError
from kedit.papers import as_text
from kedit.reports.table import fill_commands as fill
from kedit.reports.table import views
from kedit.reports.table.cli import parser
from kedit.reports.table.compare import compare
from kedit.reports.table.formats import Grid, Line, TableCell, latex, markdown
from kedit.reports.table.html import page
from kedit.reports.table.layout import Layout, layout, layouts, named
from kedit.reports.table.ranking import ranks
from kedit.reports.table.show import output, paper_table, rendered
from kedit.results.cells import Cell
from kedit.results.measured import measured
from kedit.results.mixing import refuse_mixed
from kedit.results.samples import COSTS, samples

ALL = list(layouts())
KDPO = Layout(
    "kdpo_table1",
    "kdpo",
    1,
    ("dataset", "metric"),
    ("model", "editor"),
    {"adalora_released": "adalora"},
    {
        "model": ["llama3-8b", "qwen1.5-7b", "llama2-7b"],
        "dataset": ["zsre", "wikibio", "wikidata_counterfact", "wikidata_recent"],
        "editor": ["adalora_released", "rome", "ft_l", "ft_m", "kdpo", "memit"],
        "T": ["100"],
    },
)


def places(grid: Grid) -> dict[tuple[tuple[str, ...], tuple[str, ...]], TableCell]:
    return {
        (line.head, names): entry
        for line in grid.lines
        for names, entry in zip(grid.columns, line.entries, strict=True)
        if entry != TableCell("")
    }


# --- the layout ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", ALL, ids=lambda known: known.sweep)
def test_every_printed_number_stands_once_in_its_place(known: Layout) -> None:
    """Against the file, read another way."""
    rows = as_text(known.paper, known.number).to_dict("records")

    def place(row: dict[str, str], keys: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(named(key, row[key], known.paper) for key in keys)

    def said(row: dict[str, str]) -> str:
        return (row["value"] or "-") + (f" ({row['ci']})" if row["ci"] else "")

    expected = Counter((place(row, known.rows), place(row, known.columns), said(row)) for row in rows)
    found = Counter((*at, entry.text) for grid in views.paper(known) for at, entry in places(grid).items())
    assert found == expected


@pytest.mark.parametrize("known", ALL, ids=lambda known: known.sweep)
def test_every_format_can_show_it_without_any_run(known: Layout) -> None:
    made = paper_table(known, [])
    for form in ("markdown", "latex", "csv", "html"):
        assert rendered(made, form)
    assert sum(len(grid.lines) for grid in made.views["ours"] + made.views["difference"]) == 0


def test_lines_and_columns_stand_in_the_order_of_the_print() -> None:
    [grid] = views.paper(KDPO)
    four = ["Edit Succ.", "Portability", "Locality", "Fluency"]
    three = ["Edit Succ.", "Locality", "Fluency"]
    datasets = {"zsre": four, "wikibio": three, "wikidata_counterfact": four, "wikidata_recent": four, "Average": four}
    assert [line.head for line in grid.lines] == [(name, metric) for name, some in datasets.items() for metric in some]
    six = ["AdaLoRA", "ROME", "MEMIT", "FT-L", "FT-M", "KDPO"]
    five = [editor for editor in six if editor != "MEMIT"]
    models = {"llama3-8b": five, "qwen1.5-7b": five, "llama2-7b": six}
    assert list(grid.columns) == [(model, editor) for model, some in models.items() for editor in some]
    assert grid.title == "KDPO, Table 1: the paper"


def test_the_marks_are_those_of_the_paper() -> None:
    """Its first line: underlined 87.6, 70.7, 90.8 (as printed)."""
    [grid] = views.paper(KDPO)
    first = grid.lines[0].entries
    assert [entry.text for entry in first if entry.bold] == ["88.4", "87.1", "91.4"]
    assert [entry.text for entry in first if entry.underline] == ["87.6", "70.7", "90.8"]


@pytest.mark.parametrize(
    ("values", "best", "second"),
    [
        ([1, 3, 2], [1], [2]),
        ([3, 3, 2], [0, 1], []),  # two share the best: no second
        ([3, 2, 2, 1], [0], [1, 2]),
        ([1, 2], [1], []),  # of two, none is the second best
        ([2, 2], [0, 1], []),
        ([5], [], []),
    ],
)
def test_best_and_second_best_with_ties(values: list[float], best: list[int], second: list[int]) -> None:
    found = list(ranks([float(value) for value in values]))
    assert [i for i, (first, _) in enumerate(found) if first] == best
    assert [i for i, (_, next_) in enumerate(found) if next_] == second


def test_less_time_is_better_and_the_unedited_model_takes_no_part() -> None:
    costs = Layout("kedas_table7", "kedas", 7, ("editor",), ("metric",))
    [grid] = views.paper(costs)
    bold = {line.head[0]: [e.text for e in line.entries if e.bold] for line in grid.lines}
    assert bold["LTE"] == ["1.490", "25.5"]
    assert bold["KEDAS"] == ["86.7"]
    mass = Layout("ft_editing_table2", "ft_editing", 2, ("editor",), ("dataset", "metric"))
    [grid] = views.paper(mass)
    assert grid.lines[0].head == ("(unedited)",)
    assert not any(entry.bold or entry.underline for entry in grid.lines[0].entries)  # its locality is the highest


def test_a_layout_is_read_from_the_sweeps_yaml(tmp_path: Path) -> None:
    table = {"paper": "kdpo", "number": 1, "rows": ["dataset", "metric"], "columns": ["model", "editor"]}
    params = {"model": "a,b", "editor": "${kedit.present:editor,x,\n y}", "T": 100}
    text = yaml.safe_dump({"table": table, "hydra": {"sweeper": {"params": params}}})
    (tmp_path / "mine.yaml").write_text("# @package _global_\n" + text)
    (tmp_path / "other.yaml").write_text("T: 3\n")
    found = layout("mine", tmp_path)
    assert found is not None
    assert found.axes == {"model": ["a", "b"], "dataset": [], "editor": ["x", "y"], "setting": [], "T": ["100"]}
    assert [known.sweep for known in layouts(tmp_path)] == ["mine"]
    assert layout("other", tmp_path) is None
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({"table": table | {"rows": ["nothing"]}}))
    with pytest.raises(InputError, match=r"table.rows and table.columns take each of model, setting, T, dataset"):
        layout("wrong", tmp_path)


# --- ours ------------------------------------------------------------------------------------------------------------

FOUR = {"reliability": [1, 0.5, 1, 0.5], "generality": [0, 0, 1, 1], "locality": [1, 1, 0.5, 0.5]}


def value(frame: pd.DataFrame, **keys: Any) -> float:
    for key, wanted in keys.items():
        frame = frame[frame[key] == wanted]
    assert len(frame) == 1
    return float(frame["value"].iloc[0])


@pytest.mark.parametrize(
    ("paper", "expected"),
    [
        ("kdpo", {"edit_success": 62.5, "locality": 75, "portability": 50, "fluency": 5.0}),  # with paraphrases
        ("kedas", {"edit_success": 75, "locality": 75, "portability": 50, "hm": 3 / (2 / 75 + 1 / 50), "fluency": 500}),
        ("overtone", {"edit_success": 75, "generality": 50, "locality": 75, "portability": 50, "avg": 62.5}),
    ],
)
def test_metrics_mean_what_the_paper_means(tmp_path: Path, paper: str, expected: dict[str, float]) -> None:
    scores = FOUR | {"portability": [0.5, None, 0.5, None], "fluency": [5.0] * 4}
    frame = measured([make_cell(tmp_path, scores)], paper)
    ours = frame[frame["editor"] == "ft_m"]
    scored = ours[~ours["metric"].isin(COSTS)]
    assert dict(zip(scored["metric"], scored["value"], strict=True)) == pytest.approx(expected)
    assert ours.set_index("metric")["n"][["portability", "locality"]].tolist() == [2, 4]
    assert value(frame, editor="none", metric="locality") == 100


def test_ft_editings_score_needs_all_three(tmp_path: Path) -> None:
    three = {"efficacy": [1, 1], "paraphrase": [1, 0], "neighborhood": [0.5, 0]}
    frame = measured([make_cell(tmp_path / "a", three, T=2)], "ft_editing")
    assert value(frame, editor="ft_m", metric="score") == pytest.approx(3 / (1 / 100 + 1 / 50 + 1 / 25))
    two = measured([make_cell(tmp_path / "b", {"efficacy": [1, 1], "paraphrase": [1, 0]}, T=2)], "ft_editing")
    assert "score" not in set(two["metric"])


def test_an_average_is_over_the_papers_datasets_and_only_of_all_of_them(tmp_path: Path) -> None:
    datasets = ["zsre", "wikibio", "wikidata_counterfact", "wikidata_recent"]
    cells = []
    for i, dataset in enumerate(datasets):
        portability = {} if dataset == "wikibio" else {"portability": [i / 10] * 4}
        cells.append(make_cell(tmp_path, {"reliability": [i / 4] * 4, **portability}, dataset=dataset, model="gpt2-xl"))
    frame = measured(cells, "kdpo", table=1)
    average = {"dataset": "average", "editor": "ft_m"}
    assert value(frame, **average, metric="edit_success") == pytest.approx(100 * (0 + 1 / 4 + 2 / 4 + 3 / 4) / 4)
    assert value(frame, **average, metric="portability") == pytest.approx(100 * (0 + 0.2 + 0.3) / 3)  # WikiBio has none
    assert "average" not in set(measured(cells[:3], "kdpo", table=1)["dataset"])
    kedas = measured(cells, "kedas", table=6)
    assert kedas[kedas["dataset"] == "average"]["T"].isna().all()  # test sets of different sizes


def test_seeds_are_averaged_and_a_shared_T_is_taken_from_its_own_cell(tmp_path: Path) -> None:
    cells = [make_cell(tmp_path, {"locality": [share] * 4}, seed=101 + i) for i, share in enumerate((0.2, 0.6))]
    frame = measured(cells, "kdpo")
    found = frame[frame["editor"] == "ft_m"].to_dict("records")
    assert [(r["value"], r["n"], r["seeds"], len(r["directories"])) for r in found] == [(pytest.approx(40), 8, 2, 2)]
    low, high = found[0]["low"], found[0]["high"]
    assert (low, high) == (pytest.approx(20, abs=1e-4), pytest.approx(60, abs=1e-4))  # seeds are drawn, too
    again = measured(cells, "kdpo").drop(columns="replicates")
    assert again.equals(frame.drop(columns="replicates"))  # the same each time


def test_a_capped_T_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, FOUR, T=500, effective_T=4, model="llama2-7b", dataset="wikibio")
    assert set(measured([cell], "kdpo")["T"]) == {500}
    known = Layout("kdpo_table2", "kdpo", 2, ("dataset", "metric"), ("model", "editor"))
    [grid] = paper_table(known, [cell], "ours").grids
    assert (
        "sequential, effective T=500 (4 on wikibio); N=4 cases; teacher-forced token match"
        in grid.caption.lower()[:0] + grid.caption[0].lower() + grid.caption[1:]
    )


def test_blocks_of_one_are_single_editing(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, FOUR, T=1, setting="blocks")
    assert {key.key.setting for key in samples([cell], "overtone")} == {"single"}


def test_a_stand_in_fills_the_printed_editor_unless_that_has_run(tmp_path: Path) -> None:
    stand_in = make_cell(tmp_path, FOUR, editor="kdpo_released")
    same = {"kdpo_released": "kdpo"}
    assert set(measured([stand_in], "kdpo", same_as=same)["editor"]) == {"none", "kdpo"}
    itself = make_cell(tmp_path, FOUR, editor="kdpo")
    assert set(measured([stand_in, itself], "kdpo", same_as=same)["editor"]) == {"none", "kdpo", "kdpo_released"}


def kdpo_cells(runs: Path) -> list[Cell]:
    common = {"T": 100, "effective_T": 4, "model": "llama2-7b", "dataset": "zsre"}
    return [
        make_cell(runs, FOUR, editor="kdpo", failed=1, **common),
        make_cell(runs, {**FOUR, "locality": [0, 0, 0, 0.5]}, editor="ft_m", **common),
    ]


def test_ours_stands_in_the_papers_layout_with_what_fills_the_rest(tmp_path: Path) -> None:
    [grid] = paper_table(KDPO, kdpo_cells(tmp_path), "ours").grids
    assert grid.columns == views.paper(KDPO)[0].columns
    at = places(grid)
    mine = at[("zsre", "Locality"), ("llama2-7b", "KDPO")]
    assert re.fullmatch(r"75\.0 \(\d+\.\d\)", mine.text)
    assert mine.bold
    assert "N=4 cases, 95 % interval" in mine.hint
    assert mine.link.endswith("llama2-7b/zsre/kdpo/sequential-T100/seed101/")
    missing = at[("zsre", "Locality"), ("llama3-8b", "KDPO")]
    assert (missing.text, missing.hint) == (
        "-",
        "kedit sweeps=kdpo_table1 model=llama3-8b dataset=zsre editor=kdpo T=100",
    )
    assert at[("zsre", "Locality"), ("llama3-8b", "AdaLoRA")].hint.endswith("editor=adalora_released T=100")
    assert grid.commands == ("kedit sweeps=kdpo_table1",)
    assert "1 edit of kdpo failed and was undone" in grid.caption
    assert "effective T=100 (4 on zsre); N=4 cases; teacher-forced token match" in grid.caption
    assert "half-width of the 95 % bootstrap interval" in grid.caption


def test_the_command_names_only_what_is_missing(tmp_path: Path) -> None:
    records = KDPO.printed.to_dict("records")
    there = fill.has("editor", "rome")
    some = [r for r in records if r["model"] == "llama2-7b" and r["editor"] in ("kdpo", "ft_m")]
    assert fill.summary(some, KDPO)[0] == ["kedit sweeps=kdpo_table1 model=llama2-7b editor=ft_m,kdpo"]
    accuracy = Layout("kdpo_table3", "kdpo", 3, ("editor",), ("T", "dataset"))
    assert fill.summary(accuracy.printed.to_dict("records"), accuracy) == ([], ["kedit does not measure accuracy yet"])
    if not there:
        absent = [r for r in records if r["editor"] == "rome"]
        assert fill.summary(absent, KDPO) == ([], ["kedit has no editor rome yet"])


def test_the_difference_is_ours_less_the_papers(tmp_path: Path) -> None:
    [grid] = paper_table(KDPO, kdpo_cells(tmp_path), "difference").grids
    at = places(grid)
    assert at[("zsre", "Edit Succ."), ("llama2-7b", "KDPO")].text.startswith("-28.9 (")  # 62.5 - 91.4
    assert at[("zsre", "Locality"), ("llama2-7b", "KDPO")].text.startswith("+29.4 (")
    assert at[("zsre", "Locality"), ("llama3-8b", "KDPO")].text == "-"


def test_what_the_paper_does_not_have_stands_in_a_table_of_its_own(tmp_path: Path) -> None:
    world = [make_cell(tmp_path, FOUR, editor=editor, T=T) for T in (4, 2) for editor in ("kdpo", "ft_m")][:3]
    made = paper_table(KDPO, world)
    first, second = made.views["ours"]
    assert [grid.title for grid in (first, second)] == ["KDPO, Table 1: ours (T=2)", "KDPO, Table 1: ours (T=4)"]
    assert second.columns == (("world", "FT-M"), ("world", "KDPO"))  # in the paper's order
    assert [line.head for line in second.lines] == [("world", "Edit Succ."), ("world", "Locality")]
    assert len(made.views["paper"]) == 1
    assert made.views["difference"][0].lines == ()
    both = paper_table(KDPO, [*world, *kdpo_cells(tmp_path)])
    assert both.views["ours"][0].title == "KDPO, Table 1: ours"
    assert len(both.views["ours"]) == 3


def test_a_gap_of_the_world_has_its_command(tmp_path: Path) -> None:
    known = Layout("kdpo_table6", "kdpo", 6, ("dataset", "metric"), ("T", "model", "editor"), {}, KDPO.axes)
    cells = [make_cell(tmp_path, FOUR, editor="dpo", T=T, seed=s) for T in (2, 4) for s in (101, 102)]
    cells += [make_cell(tmp_path, FOUR, editor="kdpo", T=4, seed=s) for s in (101, 102)]
    [grid] = paper_table(known, cells, "ours").grids
    empty = places(grid)[("world", "Locality"), ("T=2", "world", "KDPO")]
    assert empty.hint == "kedit sweeps=kdpo_table6 model=world dataset=world editor=kdpo T=2 seed=101,102"
    assert grid.commands[0] == empty.hint


def test_a_gaps_command_has_the_options_of_the_cells_beside_it(tmp_path: Path) -> None:
    known = Layout("kdpo_table1", "kdpo", 1, ("dataset", "metric"), ("model", "editor"), {}, KDPO.axes)
    overrides = "editor.layers=[1,2],model.path=a b,resources=offline"
    cells = [
        make_cell(
            tmp_path, FOUR, T="all", effective_T=4, editor=editor, dataset=dataset, model="local", overrides=overrides
        )
        for dataset, editor in (("zsre", "kdpo"), ("zsre", "dpo"), ("wikibio", "kdpo"))
    ]
    grids = paper_table(known, cells, "ours").grids
    options = "'editor.layers=[1,2]' 'model.path=a b' resources=offline"
    assert [command for grid in grids for command in grid.commands[:1]] == [
        f"kedit sweeps=kdpo_table1 model=local dataset=wikibio editor=dpo seed=101 {options}"
    ]


def test_another_way_of_scoring_is_from_the_same_rows_or_says_what_it_needs(tmp_path: Path) -> None:
    cells = kdpo_cells(tmp_path)
    [grid] = paper_table(KDPO, cells, "ours", "exact").grids
    assert places(grid)[("zsre", "Edit Succ."), ("llama2-7b", "KDPO")].text.startswith("50.0 (")  # 4 of 8 are exact
    assert "teacher-forced exact match" in grid.caption
    with pytest.raises(InputError, match=r"no run of kdpo_table1 has rows for --scoring generate; run it with 'eval.s"):
        paper_table(KDPO, cells, "ours", "generate")
    [empty] = paper_table(KDPO, [], "ours", "generate").grids
    assert empty.commands == ("kedit sweeps=kdpo_table1 'eval.scoring=[forced,generate]'",)


def test_kdpos_edit_success_is_compared_as_its_scripts_score_it(tmp_path: Path) -> None:
    """Without paraphrases; the paper's text counts them, too."""
    known = layout("kdpo_table1")
    assert known is not None
    place = {"model": "llama2-7b", "dataset": "zsre", "T": 100, "editor": "kdpo"}
    cells = [make_cell(tmp_path, {"reliability": [1.0, 1.0], "generality": [0.0, 0.5]}, **place)]
    at = ("zsre", "Edit Succ."), ("llama2-7b", "KDPO")
    for scored_as, ours, said in (
        ("kdpo_released", "100.0", "edit success = the edit's prompt alone"),
        ("kdpo", "62.5", "edit success = the edit's prompt and its paraphrases together"),
    ):
        made = paper_table(replace(known, scored_as=scored_as), cells)
        [grid] = made.views["ours"]
        assert places(grid)[at].text.startswith(ours)
        assert said in grid.caption.replace("Edit success", "edit success")
        [difference] = made.views["difference"]
        printed = float(places(views.paper(known)[0])[at].text)
        assert places(difference)[at].text.startswith(f"{float(ours) - printed:+.1f}")
        line = made.frame[(made.frame["metric"] == "edit_success") & made.frame["ours"].notna()].iloc[0]
        assert line["difference"] == pytest.approx(line["ours"] - line["paper"])
    assert known.scored_as == "kdpo_released"


def test_a_reading_that_the_paper_does_not_have_is_refused(tmp_path: Path) -> None:
    for place, wrong in (("kdpo_table1", "choose kdpo, kdpo_released"), ("quickstart", "only a paper's table")):
        given = parser().parse_args([place, "--scored-as", "kedas"])
        with pytest.raises(InputError, match=wrong):
            output(given)


def test_an_unfinished_cell_is_said(tmp_path: Path) -> None:
    cells = kdpo_cells(tmp_path)
    (cells[0].directory / "status").write_text("running")
    assert "1 of 2 cells are not finished" in paper_table(KDPO, cells, "ours").grids[0].caption


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "meta", "said"),
    [
        ("settings", {"setting": "mass"}, r"different settings \('sequential' and 'mass'\)"),
        ("orders", {"order_seed": 7}, r"different order seeds \(None and 7\)"),
        ("versions", {"versions": {"torch": "2.10", "transformers": "5.5"}}, r"versions \(torch: '2.9' and '2.10'\)"),
        ("options", {"overrides": "editor.lr=1"}, r"different options \('' and 'editor.lr=1'\)"),
        ("data", {"data": {"sha256": "e", "dropped": {}, "notes": []}}, r"different data files \('d' and 'e'\)"),
        ("models", {"model_is": {"identity": "n", "dtype": "float32"}}, r"different weights \('m' and 'n'\)"),
        ("scoring", {"eval_config": {"aliases": "any"}}, r"different ways of scoring \(aliases: 'first' and 'any'\)"),
    ],
)
def test_cells_that_differ_are_refused_unless_a_flag_allows_it(
    tmp_path: Path, what: str, meta: dict[str, Any], said: str
) -> None:
    cells = [make_cell(tmp_path, FOUR, editor="kdpo"), make_cell(tmp_path, FOUR, editor="ft_m", **meta)]
    with pytest.raises(InputError, match=said + rf"; a table does not mix them: .* --mix {what}"):
        paper_table(KDPO, cells)
    [grid] = paper_table(KDPO, cells, "ours", mix=[what]).grids[:1]
    assert "mixed: " in grid.caption
    refuse_mixed(cells, ["all"])


def test_asking_for_more_ways_of_scoring_is_no_difference(tmp_path: Path) -> None:
    one, two = ({"aliases": "first", "scoring": scoring} for scoring in (["forced"], ["forced", "generate"]))
    cells = [make_cell(tmp_path, FOUR, editor="kdpo", eval_config=one)]
    refuse_mixed([*cells, make_cell(tmp_path, FOUR, editor="ft_m", eval_config=two)])


def test_two_cells_cannot_fill_one_place(tmp_path: Path) -> None:
    cells = [make_cell(tmp_path, FOUR, overrides=text) for text in ("", "editor.lr=1")]
    with pytest.raises(InputError, match=r"are both ft_m on world, world, T=4, seed 101; choose one with --options"):
        paper_table(KDPO, cells, mix=["options"])


# --- two editors -----------------------------------------------------------------------------------------------------


def test_versus_is_over_the_cases_that_both_have(tmp_path: Path) -> None:
    one = make_cell(tmp_path, {"locality": [1, 0.5, 1, 0.5]}, editor="kdpo")
    other = make_cell(tmp_path, {"locality": [0.9, 0.4, 0.9, None, 0.1]}, editor="ft_m", T=4, effective_T=4)
    [line] = compare([one, other], "kdpo", "ft_m", "kdpo").to_dict("records")
    assert (line["metric"], line["n"], line["seeds"]) == ("locality", 3, 1)
    assert [line["difference"], line["low"], line["high"]] == pytest.approx([10, 10, 10], abs=1e-4)  # in each case
    with pytest.raises(InputError, match=r"kdpo and rome have no case in common .* there are ft_m, kdpo"):
        compare([one, other], "kdpo", "rome", "kdpo")


# --- formats ---------------------------------------------------------------------------------------------------------

ODD = Grid(
    "50 % of <b> & _x_",
    ("line",),
    (("a|b", "x_1"), ("a|b", "y")),
    (
        Line(
            ("<tag> & co",),
            (TableCell("1.0 (0.2)", bold=True, hint='say "<hi>"', link="runs/a b/"), TableCell("<2", underline=True)),
        ),
        Line(("second",), (TableCell("-"), TableCell("-3.5"))),
    ),
    "Caption with 100 % & <i>.",
    ("kedit x=<y>",),
)


class Reader(HTMLParser):
    """Every tag closed in order; texts and attributes kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):  # void elements
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_is_well_formed_and_escaped_and_needs_nothing_else() -> None:
    text = page("T <1>", {"ours": [ODD], "paper": [ODD]})
    reader = read(text)
    assert {"<tag> & co", "<2", "Caption with 100 % & <i>.", "kedit x=<y>", "50 % of <b> & _x_"} <= set(reader.texts)
    assert ("a", {"href": "runs/a b/"}) in reader.tags
    assert any(attributes.get("title") == 'say "<hi>"' for _, attributes in reader.tags)
    assert not {"img", "link", "iframe"} & {tag for tag, _ in reader.tags}
    assert not any({"src"} & attributes.keys() for _, attributes in reader.tags)
    assert "http" not in text
    assert sum(tag == "section" for tag, _ in reader.tags) == 2


def test_the_page_opens_on_the_first_view_that_has_a_table() -> None:
    reader = read(page("T", paper_table(KDPO, []).views))
    sections = [attributes for tag, attributes in reader.tags if tag == "section"]
    assert ["hidden" in attributes for attributes in sections] == [True, False, True]


def test_latex_is_escaped_and_has_as_many_cells_in_every_line() -> None:
    text = latex(ODD)
    assert r"\textbf{1.0 (0.2)}" in text
    assert r"\underline{\textless{}2}" in text
    assert r"\textless{}tag\textgreater{} \& co" in text
    assert r"second & - & $-$3.5 \\" in text
    assert r"\multicolumn{2}{c}{a|b}" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    body = [line for line in latex(views.paper(KDPO)[0]).splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body[1:]} == {17}
    assert not re.search(r"(?<![\\])[%#_]", "\n".join(body))


def test_markdown_marks_and_escapes() -> None:
    lines = markdown(ODD).splitlines()
    assert lines[2] == r"| line | a\|b x_1 | a\|b y |"
    assert lines[4] == "| &lt;tag&gt; &amp; co | **1.0 (0.2)** | <u>&lt;2</u> |"
    assert lines[-1] == "    kedit x=<y>"


# --- the command line ------------------------------------------------------------------------------------------------


def run_table(runs: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    import os

    command = [sys.executable, "-m", "kedit.table", *map(str, arguments)]
    env = {**os.environ, "KEDIT_RUNS": str(runs), "COLUMNS": "100"}
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_the_command_line_of_any_runs(tmp_path: Path) -> None:
    runs = tmp_path / "runs/mine"
    make_cell(runs, FOUR, editor="kdpo")
    make_cell(runs, {**FOUR, "locality": [0] * 4}, editor="ft_m")
    done = run_table(tmp_path / "runs", "mine", "--versus", "kdpo", "ft_m", "--out", tmp_path / "v.csv")
    assert done.returncode == 0, done.stderr
    lines = list(csv.DictReader((tmp_path / "v.csv").open()))
    [locality] = [line for line in lines if line["metric"] == "locality"]
    assert float(locality["difference"]) == 75
    done = run_table(tmp_path / "runs", "mine", "--format", "html", "--scoring", "exact")
    read(done.stdout)
    assert "teacher-forced exact match" in done.stdout
    wrong = run_table(tmp_path / "runs", "mine", "--mix", "everything")
    assert (wrong.returncode, wrong.stderr.strip()) == (
        1,
        "--mix everything: choose from settings, scoring, strictness, benchmarks, orders, versions, options, data, "
        "models, all",
    )
    nowhere = run_table(tmp_path / "runs", "elsewhere")
    assert "no run there" in nowhere.stderr
