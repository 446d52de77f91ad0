"""A sweep's page, and cells side by side: on cells whose numbers are known by hand."""

import base64
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_cells import make_cell

from kedit.reports.compare import frame, grid, side_by_side
from kedit.reports.differences import differing, overridden, provenance, rows_of
from kedit.reports.page import build
from kedit.reports.page.build import write_page
from kedit.reports.table.departures import footnotes
from kedit.reports.table.formats import Grid, Line, TableCell, latex, markdown, narrow_latex
from kedit.reports.table.layout import layout
from kedit.reports.table.show import paper_table
from kedit.reports.table.significance import MARK, tied
from kedit.results.cells import Cell
from kedit.results.names import both_names, display_name, said

SCORES = {"reliability": [1, 1, 0, 1], "locality": [1, 0.5, 1, 1]}
CONF = sorted(path.stem for path in (Path(__file__).parent.parent / "conf" / "editor").glob("*.yaml"))


def cell_of(runs: Path, lr: float = 1e-3, scores: Any = SCORES, **meta: Any) -> Cell:
    """A cell whose editor has a rate, given on the command line."""
    cell = make_cell(runs / "mine", scores, **{"overrides": f"editor.lr={lr:g}", **meta})
    config = {"editor": {"_target_": "x.FineTune", "lr": lr, "steps": 25}, "dataset": {"seed": cell.meta["seed"]}}
    (cell.directory / "config.yaml").write_text(yaml.safe_dump(config | {"seed": cell.meta["seed"]}))
    return Cell(cell.directory)


# --- side by side ----------------------------------------------------------------------------------------------------


def test_columns_are_the_options_in_which_cells_differ_and_a_line_is_all_its_seeds(tmp_path: Path) -> None:
    worse = {"reliability": [0, 0, 0, 1], "locality": [1, 1, 1, 1]}
    cells = [
        cell_of(tmp_path, lr, scores, seed=seed) for lr, scores in ((2e-3, worse), (1e-3, SCORES)) for seed in (1, 2)
    ]
    lines = side_by_side(cells)
    made = grid(lines)
    assert made.stubs == ("editor.lr",)
    assert [line.head for line in made.lines] == [("(unedited)",), ("0.001",), ("0.002",)]
    columns = [name for (name,) in made.columns]
    assert columns == ["edit success", "locality", "HM", "N", "seeds", "seconds"]
    texts = {line.head[0]: [entry.text for entry in line.entries] for line in made.lines}
    assert texts["0.001"][:2] + texts["0.001"][3:] == ["75.0", "87.5", "4", "2", "4.0"]
    assert texts["0.002"][:2] == ["25.0", "100.0"]
    assert "editor=ft_m" in made.caption
    assert "seeds 1, 2" in made.caption
    assert "each of 2 seeds (1: 75.00, 2: 75.00; standard deviation 0.00)" in made.lines[1].entries[0].hint
    numbers = frame(lines).set_index("editor.lr")
    assert numbers.loc["0.001", "edit success"] == 75


def test_what_follows_from_a_choice_is_no_column(tmp_path: Path) -> None:
    """Two editors have other rates by themselves; a rate that was given is shown."""
    cells = [cell_of(tmp_path, 1e-3, editor="ft_m", overrides=""), cell_of(tmp_path, 2e-3, editor="kdpo", overrides="")]
    assert differing(rows_of(cells)) == ["editor"]
    assert grid(side_by_side(cells)).lines[1].head == ("FT-M (ft_m)",)
    given = [cell_of(tmp_path / "given", 1e-3, editor="ft_m"), cell_of(tmp_path / "given", 2e-3, editor="kdpo")]
    assert differing(rows_of(given)) == ["editor", "editor.lr"]


def test_the_same_options_in_two_sweeps_are_two_lines(tmp_path: Path) -> None:
    cells = [cell_of(tmp_path), cell_of(tmp_path / "again")]
    (tmp_path / "again" / "mine").rename(tmp_path / "again" / "yours")
    [other] = (tmp_path / "again" / "yours").rglob("meta.json")
    made = grid(side_by_side([cells[0], Cell(other.parent)]))
    assert made.stubs == ("sweep",)
    assert [line.head for line in made.lines[1:]] == [("mine",), ("yours",)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("editor.lr=1", ["editor.lr"]),
        ("editor.lr=1,editor/loss=overtone", ["editor.lr", "editor.loss"]),
        ("+a.b=1,eval.scoring=[forced,generate]", ["a.b", "eval.scoring"]),
        ("", []),
    ],
)
def test_the_options_that_overrides_name(text: str, names: list[str]) -> None:
    assert overridden(text) == names


def test_what_else_differs_is_said(tmp_path: Path) -> None:
    cells = [cell_of(tmp_path), cell_of(tmp_path, 2e-3, versions={"torch": "2.8", "transformers": "5.5"})]
    assert provenance(rows_of(cells)) == ["versions.torch"]
    assert "they also differ in versions.torch" in grid(side_by_side(cells)).caption


def test_the_command_needs_neither_hydra_nor_torch(tmp_path: Path) -> None:
    places = [str(cell_of(tmp_path, lr).directory) for lr in (1e-3, 2e-3)]
    code = (
        "import sys; from kedit.reports.compare import main; from kedit.reports.page import build; main()\n"
        "assert not {'torch', 'hydra', 'omegaconf'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code, *places], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "editor.lr" in done.stdout
    gone = subprocess.run([sys.executable, "-c", code, str(tmp_path / "no")], capture_output=True, text=True)
    assert (gone.returncode, len(gone.stderr.strip().splitlines())) == (1, 1)


# --- marks -----------------------------------------------------------------------------------------------------------


def test_ties_with_the_best_are_paired() -> None:
    """Always one point worse is significantly worse, however wide each interval is; sometimes worse is not."""
    import numpy as np

    wide = np.random.default_rng(0).normal(50, 20, 2000)
    numbers: dict[str, Any] = {
        "best": (50.0, wide),
        "below": (49.0, wide - 1),
        "beside": (49.5, wide[::-1]),
        "bare": (49.9, None),
    }
    assert tied(numbers) == {"beside"}
    assert tied(numbers, sign=-1) == {"beside"}


def test_a_paper_table_marks_them_and_tells_seeds_from_cases(tmp_path: Path) -> None:
    runs = tmp_path / "kdpo_table1"
    for editor, scores in (("kdpo", [1, 1, 1, 1]), ("ft_m", [1, 1, 1, 0]), ("ft_l", [0, 0, 0, 0])):
        for seed in (1, 2):
            make_cell(runs, {"locality": scores}, model="llama2-7b", dataset="zsre", editor=editor, T=100, seed=seed)
    cells = [Cell(path.parent) for path in sorted(runs.rglob("meta.json"))]
    known = layout("kdpo_table1")
    assert known
    [ours] = paper_table(known, cells, "ours").views["ours"]
    marks = {
        names[-1]: entry.mark
        for line in ours.lines
        for names, entry in zip(ours.columns, line.entries, strict=True)
        if entry.mark
    }
    assert marks == {"FT-M": MARK}
    assert "N=4 cases in each of the edit seeds 1, 2" in ours.caption
    assert "KDPO kdpo" in ours.caption
    assert MARK in markdown(ours)
    assert r"$^\dagger$" in latex(ours)


def test_a_difference_says_where_a_number_is_defined_otherwise(tmp_path: Path) -> None:
    runs, known = tmp_path / "kdpo_table1", layout("kdpo_table1")
    assert known
    for meta in (
        {"editor": "kdpo"},
        {"editor": "adalora_released"},
        {"editor": "kdpo", "dataset": "wikibio", "effective_T": 74},
        {"editor": "ft_m", "model_is": {"identity": "m", "dtype": "bfloat16"}},
    ):
        make_cell(runs, {"locality": [1, 1, 0]}, **{"model": "llama2-7b", "dataset": "zsre", "T": 100, **meta})
    cells = [Cell(path.parent) for path in sorted(runs.rglob("meta.json"))]
    [made] = paper_table(known, cells, "difference", mix=["all"]).views["difference"]
    marks = {
        (line.head[0], names[-1]): entry.mark
        for line in made.lines
        for names, entry in zip(made.columns, line.entries, strict=True)
        if line.head[1] == "Locality" and entry.text not in ("-", "")
    }
    assert marks["zsre", "KDPO"] == ""
    for place, text in (
        (("zsre", "AdaLoRA"), "AdaLoRA (EasyEdit) (adalora_released) in the place of AdaLoRA"),
        (("wikibio", "KDPO"), "wikibio has 74 edits, not 100"),
        (("zsre", "FT-M"), "in bfloat16"),
    ):
        assert f"{marks[place]}: {text}" in made.caption


def test_what_holds_everywhere_has_no_letter(tmp_path: Path) -> None:
    known = layout("kdpo_table1")
    assert known
    cell = make_cell(tmp_path, {"locality": [1, 0]}, order_seed=3)
    import pandas as pd

    from kedit.reports.table.table_cells import Shown

    given = Shown(known, pd.DataFrame(), [cell])
    record = {"directories": [cell.directory], "editor": "ft_m", "T": 4, "their_names": ""}
    assert footnotes(given, {("a", "b"): record}) == ({("a", "b"): ""}, ["unlike the paper everywhere: order seed 3"])


@pytest.mark.parametrize("editor", CONF)
def test_every_editor_has_a_name_for_tables(editor: str) -> None:
    assert display_name(editor) != editor


def test_names_stand_beside_each_other() -> None:
    assert [both_names(name) for name in ("ft_m", "mine")] == ["FT-M (ft_m)", "mine"]
    assert said(["ft_m", "kdpo", "ft_m", "mine"]) == ["editor= on the command line: FT-M ft_m, KDPO kdpo"]
    assert said(["mine"]) == []
    assert len({display_name(editor) for editor in CONF}) == len(CONF)


def test_narrow_latex_has_few_columns_and_no_intervals() -> None:
    columns = tuple((dataset, metric) for dataset in ("zsre", "wikibio") for metric in "ABCDE")
    line = Line(("KDPO",), tuple(TableCell(f"{i}.0 (1.2)", mark="a" * (i == 3)) for i in range(10)))
    text = narrow_latex(Grid("Table", ("editor",), columns, (line,), "N=4; and so on."))
    assert text.count(r"\begin{tabular}{lrrrrr}") == 2
    assert "(1.2)" not in text
    assert "$^{a}$" in text
    assert r"\caption{Table. N=4.}" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 3


# --- the page --------------------------------------------------------------------------------------------------------


def answered(cell: Cell, wrong: str = "</script>") -> Cell:
    """With a wanted answer and what was said in every row."""
    path = cell.directory / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if "exact" in row:
            row |= {"gold": " Paris", "pred": " Paris" if row["exact"] else wrong}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Cell(cell.directory)


def parts_of(text: str) -> dict[str, Any]:
    """What the script unpacks."""
    found = re.findall(r'<script type="text/plain" id="part-(.*?)">(.*?)</script>', text)
    return {name: json.loads(gzip.decompress(base64.b64decode(content))) for name, content in found}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for lr in (1e-3, 2e-3):
        answered(cell_of(tmp_path, lr))
    (tmp_path / "mine" / "radar.png").write_bytes(b"\x89PNG")
    return tmp_path / "mine"


def test_a_page_holds_tables_answers_pictures_and_cells_in_one_file(home: Path) -> None:
    text = write_page(home).read_text()
    assert re.findall(r'aria-controls="view\d" aria-selected="\w+" tabindex="-?\d">(.*?)<', text) == [
        "scores",
        "answers",
        "pictures",
        "cells",
        "files",
    ]
    assert "http" not in text.replace("http-equiv", "")
    assert [src[:22] for src in re.findall(r'src="(.*?)"', text)] == ["data:image/png;base64,"]
    parts = parts_of(text)
    assert {name for name in parts if name != "cells"} == {"questions0", "answers0-0", "answers0-1"}
    first = parts["questions0"]
    assert [question[1] for question in first["questions"]] == ["reliability"] * 4 + ["locality"] * 4
    assert parts["answers0-0"][2] == ["</script>", 0]
    assert first["questions"][0][4] == "Paris"
    cells = parts["cells"]
    assert [cell["directory"] for cell in cells] == [
        str(path.parent.relative_to(home)) for path in sorted(home.rglob("meta.json"))
    ]
    assert "lr: 0.001" in cells[0]["config"]
    assert ["versions.torch", "2.9"] in cells[0]["facts"]
    assert 'href="world/world/ft_m/sequential-T4/seed101/editor.lr=0.001/"' in text
    for name in ("table.tex", "table_narrow.tex"):
        assert (home / name).exists()
        assert f'<a href="{name}">' in text


def test_a_large_pages_answers_lie_beside_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "MOST", 100)
    text = write_page(home).read_text()
    assert set(parts_of(text)) == {"cells"}
    files = {path.name: path.read_text() for path in (home / "answers").iterdir()}
    assert set(files) == {"questions0.js", "answers0-0.js", "answers0-1.js"}
    assert files["answers0-0.js"].startswith('keditPart("answers0-0","')
    monkeypatch.undo()
    write_page(home)
    assert not (home / "answers").exists()


def test_a_paper_sweeps_page_has_the_papers_views(tmp_path: Path) -> None:
    home = tmp_path / "kdpo_table1"
    make_cell(home, SCORES, model="llama2-7b", dataset="zsre", editor="kdpo", T=100)
    text = write_page(home).read_text()
    tabs = re.findall(r'tabindex="-?\d">(.*?)</button>', text)
    assert tabs[:4] == ["ours", "paper", "difference", "side by side"]
    assert "KDPO, Table 1: difference" in text
