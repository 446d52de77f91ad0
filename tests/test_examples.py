"""Example answers from rows: every editor's beside the unedited model's, found by what was asked."""

from pathlib import Path
from shutil import copytree

import pytest
from conftest import run_kedit

from kedit.common.errors import InputError
from kedit.reports.answers import PRINTED, choose, examples, groups, markdown, outputs, printed
from kedit.results.cells import Cell, find

TINY = ["model.people=20", "model.steps=2", "model.width=32", "model.mlp=32", "eval.fluency_tokens=20"]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Cell]:
    folder = tmp_path_factory.mktemp("examples")
    given = ["-m", *TINY, "T=3", "editor=ft_m,kdpo", "eval.scoring=[forced,generate]"]
    done = run_kedit(folder, *given)
    assert done.returncode == 0, done.stderr
    return find(folder / "runs")


def test_every_question_has_its_prompt_and_every_editors_answer(cells: list[Cell]) -> None:
    [(caption, together)] = groups(cells)
    assert caption.startswith("world on world, sequential, T=3, seed 0")
    table = examples(together, ["reliability", "portability"])
    assert list(table.columns[4:]) == ["prompt", "wanted", "(unedited)", "ft_m", "kdpo"]
    first = table[table["case"] == table["case"][0]]
    assert first["kind"].tolist()[0] == "reliability"
    rows = cells[0].rows
    asked = rows[(rows["when"] == "test") & (rows["kind"] == "reliability") & (rows["scoring"] == "forced")]
    assert table[table["kind"] == "reliability"]["wanted"].tolist() == asked["gold"].str.strip().tolist()
    assert table.isin(["-"]).sum().sum() == 0
    right = table[table["kind"] == "reliability"]["kdpo"].str.endswith("✓").tolist()
    kdpo = outputs(together[1], "test", "forced")
    assert right == kdpo[kdpo.index.get_level_values("kind") == "reliability"].str.endswith("✓").tolist()


def test_generated_answers_are_those_of_free_generation(cells: list[Cell]) -> None:
    table = examples(cells, ["reliability"], scoring="generate")
    rows = cells[0].rows
    said = rows[(rows["when"] == "before") & (rows["kind"] == "reliability") & (rows["scoring"] == "generate")]
    assert [text.rsplit(" ", 1)[0] for text in table["(unedited)"]] == said["generated"].str.strip().tolist()


def test_cases_are_named_by_id_or_by_what_is_asked(cells: list[Cell]) -> None:
    table = examples(cells, ["reliability", "locality"])
    ids = list(dict.fromkeys(table["case"]))
    assert set(choose(table, [], 2)["case"]) == set(ids[:2])
    assert set(choose(table, [ids[1]], 8)["case"]) == {ids[1]}
    prompt = table[table["case"] == ids[2]]["prompt"].iloc[0]
    assert ids[2] in set(choose(table, [prompt.upper()], 8)["case"])
    with pytest.raises(InputError, match="no case has this id"):
        choose(table, ["who?"], 8)


def test_a_cell_that_did_not_generate_says_so(cells: list[Cell], tmp_path: Path) -> None:
    copytree(cells[0].directory, tmp_path / "cell")
    (tmp_path / "cell" / "manifest.json").unlink()  # it would say that the rows were changed
    rows = (tmp_path / "cell" / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cell" / "rows.jsonl").write_text("".join(row for row in rows if '"gold"' in row and '"pred"' in row))
    with pytest.raises(InputError, match=r"eval.scoring=\[forced,generate\]"):
        examples(find(tmp_path / "cell"), ["reliability"], scoring="generate")


def test_markdown_has_a_line_for_each_question(cells: list[Cell]) -> None:
    table = examples(cells, ["reliability"])
    lines = markdown(table).splitlines()
    assert lines[0] == "| case | prompt | wanted | (unedited) | ft_m | kdpo |"
    assert len(lines) == 2 + len(table)


@pytest.mark.parametrize(("name", "n", "editors"), [("kdpo_table4", 8, 5), ("kedas_table10", 2, 3)])
def test_the_papers_own_examples_have_the_same_form(cells: list[Cell], name: str, n: int, editors: int) -> None:
    table = printed(name)
    ours = examples(cells, ["reliability"])
    assert (len(table), table.shape[1]) == (n, len(ours.columns) - 2 + editors)
    assert set(ours.columns) - {"ft_m", "kdpo"} <= set(table.columns)
    assert list(dict.fromkeys(table["kind"])) == PRINTED[name]
    assert markdown(table).count("\n") == n + 1
    with pytest.raises(InputError, match="no case has this id or asks this"):
        choose(ours, list(table["prompt"]), 8)


def test_marks_are_the_papers() -> None:
    table = printed("kdpo_table4").set_index("prompt")
    assert table.loc["What network first aired The Smothers Brothers Comedy Hour?", "kdpo"] == "NBC ✓"
    assert table.loc["What network first aired The Smothers Brothers Comedy Hour?", "memit"] == "(empty) ✗"
    assert table.loc["What species is ZIC3 specific to?", "dpo"] == "male"
