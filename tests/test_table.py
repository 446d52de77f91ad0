"""Tables are recomputed from rows.jsonl by another, shorter way; and look as they should."""

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import run_kedit
from made_cells import make_cell

from kedit.common.errors import InputError
from kedit.reports.table import plain
from kedit.reports.table.plain import markdown, show, tables, write
from kedit.results.cells import find
from kedit.results.schema import SCHEMA
from kedit.results.scores import UNEDITED_ROW, per_case, summary


def row(case: str, kind: str, group: str, token: float, when: str = "test", **more: object) -> dict[str, object]:
    place = {"step": 2, "edits_so_far": 2, "T": 2, "when": when, "case": case, "kind": kind, "group": group, "probe": 0}
    return place | {"scoring": "forced", "token": token, "exact": int(token == 1)} | more


ROWS = [
    row("a", "reliability", "", 1.0),
    row("b", "reliability", "", 0.5),
    row("a", "portability", "x", 1.0),
    row("a", "portability", "x", 0.0, probe=1),
    row("a", "portability", "y", 1.0),
    row("a", "locality", "z", 0.8),
    row("b", "locality", "z", 1.0),
    row("b", "fluency", "", 0.0, scoring="generate", entropy=5.5),
    row("a", "reliability", "", 0.2, when="before"),
]


def test_case_macro_by_hand() -> None:
    floor, line = summary(ROWS).to_dict("records")
    assert line["edit success"] == 75
    assert line["portability"] == 75  # of one case: mean of group x (1/2) and group y (1)
    assert line["n_portability"] == 1
    assert line["locality"] == 90
    assert line["fluency"] == 550
    assert line["HM"] == pytest.approx(3 / (1 / 75 + 1 / 90 + 1 / 75))
    assert line["N"] == 2
    assert pd.isna(line["generality"])  # absent, not 0
    assert (floor["model"], floor["T"], floor["edit success"]) == (UNEDITED_ROW, 0, 20)


def test_other_merges_and_scores_by_hand() -> None:
    tests = pd.DataFrame(ROWS)[:-1]
    assert per_case(tests, "portability", merge="prompt_micro").mean() == pytest.approx(200 / 3)
    assert sorted(per_case(tests, "portability", merge="group_macro")) == [50, 100]
    assert per_case(tests, "reliability", score="exact").tolist() == [100, 0]
    assert per_case(tests, "reliability", score="generate").empty


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real sweep of small cells: two editors on the world model."""
    folder = tmp_path_factory.mktemp("sweep")
    done = run_kedit(
        folder,
        "sweeps=quickstart",
        "hydra/launcher=basic",
        "editor=kdpo,ft_m",
        "T=12",
        "setting.checkpoints=[4]",
        "eval.fluency_tokens=30",
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_sweeps_table_equals_one_made_from_its_rows_in_ten_lines(sweep: Path) -> None:
    for line in pd.read_csv(sweep / "runs/quickstart/table.csv").to_dict("records"):
        [path] = (sweep / "runs/quickstart").rglob(
            f"{'kdpo' if line['model'] == UNEDITED_ROW else line['model']}/**/rows.jsonl"
        )
        rows = pd.read_json(path, lines=True)
        rows = (
            rows[rows["when"] == "before"]
            if line["T"] == 0
            else rows[(rows["when"] == "test") & (rows["T"] == line["T"])]
        )
        cases = rows.groupby(["kind", "case", "group"])["token"].mean().groupby(["kind", "case"]).mean()
        for kind in ("reliability", "generality", "portability", "locality"):
            assert 100 * cases[kind].mean() == pytest.approx(line[kind.replace("reliability", "edit success")])
        assert 100 * rows["entropy"].mean() == pytest.approx(line["fluency"])
        assert rows["case"].nunique() == line["N"]


def test_the_table_has_the_floor_first_and_both_T(sweep: Path) -> None:
    [(caption, table)] = tables(find(sweep / "runs/quickstart"))
    assert [(line.model, line.T) for line in table.itertuples()] == [
        (UNEDITED_ROW, 0),
        ("ft_m", 4),
        ("ft_m", 12),
        ("kdpo", 4),
        ("kdpo", 12),
    ]
    assert table["N"].tolist() == [12, 4, 12, 4, 12]
    assert table["seconds"].notna().tolist() == [False, True, True, True, True]
    assert "sequential, effective T=12" in caption
    assert "edit success = reliability" in caption


def test_the_default_table_has_its_columns_and_caption(sweep: Path) -> None:
    [(caption, table)] = tables(find(sweep / "runs/quickstart"))
    header = "| editor | T | edit success | generality | portability | locality | fluency | HM | N | seconds |"
    assert markdown(caption, table).splitlines()[0] == header
    assert (
        "teacher-forced token match x100, case_macro, N cases; edit success = reliability; locality = agreement with "
        "the unedited model; HM of edit success, locality and portability; fluency = n-gram entropy x100; seconds = "
        "editing up to T"
    ) in caption
    counted = [f"n_{kind}" for kind in ("reliability", "generality", "portability", "locality", "fluency")]
    assert list(table)[-7:] == ["perplexity", "seeds", *counted]


def test_what_a_sweep_leaves_behind(sweep: Path) -> None:
    home = sweep / "runs/quickstart"
    assert {path.name for path in home.iterdir()} >= {"table.md", "table.csv", "retention.png", "radar.png"}
    cells = find(home)
    assert len(cells) == 2
    for cell in cells:
        names = {path.name for path in cell.directory.iterdir()}
        assert names >= {
            "rows.jsonl",
            "steps.jsonl",
            "config.yaml",
            "meta.json",
            "table.md",
            "table.csv",
            "retention.png",
            "radar.png",
        }
        assert "state" not in names
        assert cell.meta["schema"] == SCHEMA
        assert cell.meta["effective_T"] == 12
        assert set(cell.meta["seconds"]) == {"load", "fit", "edit", "evaluate", "measures", "session"}
        assert cell.meta["data"]["sha256"]


def test_cells_of_other_settings_stand_in_tables_of_their_own(sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep / "runs/quickstart", tmp_path / "copy")
    one = find(tmp_path / "copy")[0].directory / "meta.json"
    (one.parent / "manifest.json").unlink()  # it would say that this was changed
    one.write_text(json.dumps(json.loads(one.read_text()) | {"setting": "blocks"}))
    assert len(list(tables(find(tmp_path / "copy")))) == 2


def test_printed_numbers_have_one_decimal_and_dashes(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = find(sweep / "runs/quickstart")
    made = list(tables(cells))
    show(made)
    printed = capsys.readouterr().out
    assert UNEDITED_ROW in printed
    assert "100.0" in printed
    [(caption, table)] = made
    text = markdown(caption, table)
    first = text.splitlines()[2]
    assert first.startswith(f"| {UNEDITED_ROW} | 0 |")
    assert first.split("|")[-2].strip() == "-"


def test_an_empty_place_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run there"):
        find(tmp_path)
    with pytest.raises(InputError, match="no run there"):
        write(find(tmp_path), tmp_path)


def test_a_caption_says_whose_numbers_an_editor_has(tmp_path: Path) -> None:
    scores = {"reliability": [1.0, 0.5]}
    make_cell(tmp_path, scores, editor="kdpo", numbers={"ft_m/world": ["editor.layers"]}, untuned=False)
    own = {"memit/world": ["editor.layers"], "solver/least_squares/world": ["editor.solver.weight"]}
    make_cell(tmp_path, scores, editor="memit", numbers=own, untuned=False)
    make_cell(tmp_path, scores, editor="ft_m", numbers={}, untuned=True)
    make_cell(tmp_path, scores, editor="old")  # of a run before there was this
    [(caption, _)] = tables(find(tmp_path))
    assert "; kdpo has numbers of ft_m for world" in caption
    assert "; ft_m is untuned for world" in caption
    assert "memit" not in caption
    assert "old" not in caption


def test_editors_come_by_their_hm_behind_the_unedited_model() -> None:
    lines = pd.DataFrame(
        [
            {"model": "(unedited)", "T": 0, "HM": 40.0, "N": 30, "seed": 1},
            *({"model": name, "T": T, "HM": hm, "N": T, "seed": 1} for name, T, hm in HMS),
        ]
    )
    table = plain._pool(lines)
    assert list(zip(table["model"], table["T"], strict=True)) == [
        ("(unedited)", 0),
        ("b", 10),
        ("b", 30),
        ("a", 10),
        ("a", 30),
        ("c", 10),
        ("c", 30),
    ]


HMS = [("a", 10, 90.0), ("a", 30, 60.0), ("b", 10, 80.0), ("b", 30, 70.0), ("c", 10, 95.0), ("c", 30, math.nan)]
