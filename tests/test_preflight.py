"""What a sweep's cells need and do not find is said once, before anything is loaded; the other cells run."""

import json
from pathlib import Path

import pytest
from conftest import TESTS, run_kedit
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import kedit.run.main  # noqa: F401 (the resolvers of conf/)
from kedit.cases import Edit
from kedit.common.errors import named_in
from kedit.data.files import missing_sources
from kedit.editors.incontext.augmentation import Augmentation, Form
from kedit.editors.incontext.augmentation.file_first import FileFirst
from kedit.reports.cell_status import code, look
from kedit.reports.status import lines
from kedit.reports.table.fill_commands import hint, summary
from kedit.reports.table.layout import layout
from kedit.run.composition import CONF
from kedit.run.preflight import said
from kedit.run.sweep import record

ZSRE = ["dataset=zsre", f"dataset.path={TESTS / 'data' / 'zsre.json'}"]


def test_a_cell_that_lacks_a_file_is_blocked_and_the_others_run(tmp_path: Path) -> None:
    given = ["-m", *ZSRE, "editor=ft_m,ft_mask_para_rand", "setting=single", "dataset.limit=1", "eval.fluency_tokens=0"]
    done = run_kedit(tmp_path, *given, "dataset.train_path=[nope.json]")
    text = done.stdout + done.stderr
    assert done.returncode == 1
    assert "1 of 2 cells cannot start, because something is missing:" in text
    assert text.count("nope.json: no such file; give it with dataset.train_path=FILE") == 1
    assert "Traceback" not in text
    cells = {cell.directory.split("/")[2]: cell for cell in look(tmp_path / "runs" / "adhoc")}
    assert {name: cell.state for name, cell in cells.items()} == {"ft_m": "done", "ft_mask_para_rand": "blocked"}
    assert not cells["ft_mask_para_rand"].place.exists()
    assert code(list(cells.values())) == 2
    assert any(line.startswith("blocks 1 cell: nope.json: no such file") for line in lines(list(cells.values())))


def test_a_sweep_of_which_no_cell_can_start_ends_at_once(tmp_path: Path) -> None:
    done = run_kedit(
        tmp_path, "-m", *ZSRE, "editor=ft_mask_para_rand", "setting=single", "dataset.train_path=[nope.json]"
    )
    assert done.returncode == 1
    assert "1 of 1 cells cannot start" in done.stderr
    assert not list((tmp_path / "runs").rglob("seed*"))


def test_a_table_does_not_offer_a_command_for_what_lacks_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEDIT_RUNS", str(tmp_path))
    home = tmp_path / "kedas_table4"
    home.mkdir()
    chosen = {"model": "llama2-7b-chat", "dataset": "zsre", "editor": "kedas"}
    directory = "llama2-7b-chat/zsre/kedas/sequential-Tall/seed0"
    record(home, [chosen | {"directory": directory, "missing": ["/data/LTE_train_data.json: no such file; get it"]}])
    table = layout("kedas_table4")
    assert table is not None
    printed = table.printed
    blocked = printed[(printed["model"] == "llama2-7b-chat") & (printed["editor"] == "kedas")]
    number = blocked[blocked["dataset"] == "zsre"].to_dict("records")[0]
    assert hint(number, table).startswith("it lacks /data/LTE_train_data.json: python -m kedit.status kedas_table4")
    commands, sentences = summary([number], table)
    assert commands == []
    assert sentences == [
        "1 numbers lack /data/LTE_train_data.json: python -m kedit.status kedas_table4 says where they come from"
    ]


@pytest.mark.parametrize(
    ("sentence", "name"),
    [
        ("/data/x.json: no such file; get it", "/data/x.json"),
        ("x.json of the hub dataset a/b could not be downloaded", "x.json"),
        ("editor.memory.encoder=a/b: this sentence encoder cannot be had", "editor.memory.encoder=a/b"),
        ("the environment variable OPENAI_API_KEY holds no key", "OPENAI_API_KEY"),
        ("nothing of the kind", "nothing"),
    ],
)
def test_what_a_sentence_is_about(sentence: str, name: str) -> None:
    assert named_in(sentence) == name


def test_a_file_that_several_cells_need_is_one_line() -> None:
    one = "x.json: no such file; give it with a.b=FILE"
    other = "x.json: no such file; give it with c.d=FILE"
    first, *found = said({"p": [one, "y.json: no such file; get it"], "q": [other]}, 5)
    assert first == "2 of 5 cells cannot start, because something is missing:"
    assert found == [f"- {one} (used as c.d too) [2 cells]", "- y.json: no such file; get it [1 cells]"]


def test_all_files_of_a_dataset_are_looked_for(tmp_path: Path) -> None:
    found = missing_sources(path=str(tmp_path / "a.json"), train_path=[str(tmp_path / "b.json")], train=True)
    assert [named_in(sentence) for sentence in found] == [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert len(list(missing_sources(path=str(tmp_path / "a.json"), train_path=["b.json"], train=False))) == 1


class Fixed(Augmentation):
    def forms(self, edits):  # type: ignore[no-untyped-def]
        return [[Form("declarative", f"new {edit.prompt}")] for edit in edits]


def test_wordings_come_from_the_file_and_only_others_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, new = Edit("Ann is", "here"), Edit("Bob is", "there")
    file = tmp_path / "forms.jsonl"
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    asked = ["editor=kedas", "editor/augmentation=endpoint", "editor.augmentation.api_key_env=NO_KEY_AT_ALL"]
    with initialize_config_dir(CONF, version_base="1.3"):
        endpoint = instantiate(compose("config", asked).editor.augmentation, _convert_="all")
    [sentence] = FileFirst(path=str(file), otherwise=endpoint).missing_inputs()
    assert sentence.startswith(f"{file}: no such file; ")
    assert "NO_KEY_AT_ALL holds no key" in sentence
    forms = {"declarative": "Ann is here."}
    file.write_text(json.dumps({"prompt": "Ann is", "target_new": "here", "forms": forms}) + "\n", encoding="utf-8")
    source = FileFirst(path=str(file), otherwise=Fixed())
    source.prepare([known, new])
    assert [[form.text for form in mine] for mine in source.forms([new, known])] == [["new Bob is"], ["Ann is here."]]
    assert list(FileFirst(path=str(file), otherwise=endpoint).missing_inputs()) == []
