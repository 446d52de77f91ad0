"""The papers' numbers: whole, joined to conf/, translated again."""

import os
from pathlib import Path

import pandas as pd
import pytest

from kedit.common.errors import InputError
from kedit.papers import FOLDER, KEYS, PAPERS, printed, tables
from kedit.papers.translate import translate

CONF = Path(__file__).parent.parent / "conf"
ABSENT = {  # what the papers have and conf/ has not; "" and averages are no pieces
    "model": set[str](),
    "setting": set[str](),
    "dataset": set("csqa hellaswag mmlu mnli sst2 winogrande".split()),
    "editor": set[str](),
}
NO_PIECE = {"dataset": {"average", "all"}, "editor": {"none"}}  # none: the unedited model
MODELS = """llama2-7b llama2-7b-chat llama3-8b llama3-8b-instruct llama3.1-8b-instruct qwen1.5-7b qwen1.5-0.5b
    qwen2.5-7b-instruct gpt-j-6b gpt2-xl""".split()
GATED = ("meta-llama/",)


def everything() -> pd.DataFrame:
    return pd.concat([printed(paper) for paper in PAPERS], ignore_index=True)


@pytest.mark.parametrize("group", ABSENT)
def test_every_key_is_a_piece_of_conf_or_known_to_be_absent(group: str) -> None:
    used = {*everything()[group]} - {""} - NO_PIECE.get(group, set())
    there = {path.stem for path in (CONF / group).glob("*.yaml")}
    assert used - there - ABSENT[group] == set()
    assert ABSENT[group] & there == set(), "has appeared in conf/: take it off the list"
    assert ABSENT[group] - used == set(), "no paper has it: take it off the list"


def test_nothing_is_lost() -> None:
    frame = everything()
    assert (len(frame), frame["value"].notna().sum(), frame["ci"].notna().sum()) == (3977, 3781, 200)
    assert sum(len(tables(paper)) for paper in PAPERS) == 31
    assert not frame.duplicated(["paper", "table", *KEYS]).any()
    assert (frame["value"].isna() == frame["note"].str.contains("no value|OCR LOSS")).all()


def test_printed_as_has_what_was_translated() -> None:
    frame = everything()
    found = frame[(frame["table"] == 3) & (frame["editor"] == "lora_overtone_no_clip")]
    assert {*found["printed_as"]} == {"dataset=zsre; editor=lora+overtone-clip"}
    assert {*printed("overtone", 4)["setting"]} == {"single", "blocks"}
    assert (printed("kdpo")["printed_as"] == "").all()


def test_a_table_that_is_not_here_is_named() -> None:
    with pytest.raises(InputError, match="kdpo table 4: not here; there are 1, 2, 3, 5, 6"):
        printed("kdpo", 4)
    with pytest.raises(InputError, match="'grace': not one of kdpo, ft_editing"):
        printed("grace")


def test_translating_again_changes_nothing(tmp_path: Path) -> None:
    source = Path(os.environ.get("KEDIT_TEST_DATA", "")).parent / "paper_tables"
    if "KEDIT_TEST_DATA" not in os.environ or not source.is_dir():
        pytest.skip("KEDIT_TEST_DATA is not set, or paper_tables does not lie beside it")
    made = translate(source, tmp_path)
    assert {path.name for path in made} == {path.name for path in FOLDER.glob("*.csv")}
    for path in made:
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), path.name


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_three_lines_over_local_and_says_how_to_get_access(model: str) -> None:
    lines = (CONF / "model" / f"{model}.yaml").read_text().splitlines()
    path = lines[-1].removeprefix("path: ")
    settings = [line for line in lines if line and not line.startswith("#")]
    assert settings == ["defaults:", "  - local", "  - _self_", f"path: {path}"]
    if path.startswith(GATED):
        assert lines[0].startswith(f"# Gated: accept its licence at https://huggingface.co/{path}")
