"""`python -m kedit.fetch` brings what cells need into the caches, here from a hub on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hub_server
import pytest
from huggingface_hub import constants

from kedit.common.hub import _looked_up as known_files
from kedit.run.fetch_command import fetch

RECORDS = Path(__file__).parent / "data" / "zsre.json"
DATA_FILE = "benchmark/ZsRE/ZsRE-test-all.json"
MODEL = ["model=local", "model.path=somebody/small"]
CELL = [*MODEL, "dataset=zsre", "editor=ft_m", "editor.layers=[1]", "editor.lr=1e-3"]


@pytest.fixture
def hub(tmp_path: Path, small_dir: Path) -> Iterator[hub_server.Server]:
    """A model, a dataset, and a file that no model needs."""
    data = tmp_path / "hub" / "KnowEdit"
    (data / DATA_FILE).parent.mkdir(parents=True)
    (data / DATA_FILE).write_bytes(RECORDS.read_bytes())
    (small_dir / "pytorch_model.bin").write_bytes(b"a pickle")
    with hub_server.serving({"somebody/small": small_dir, "datasets/zjunlp/KnowEdit": data}) as server:
        yield server


@pytest.fixture
def fetched(tmp_path: Path, hub: hub_server.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """`python -m kedit.fetch` in this process, with an empty cache of the hub's."""
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    changes = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": False,
    }
    for name, value in changes.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("KEDIT_DATA", str(tmp_path / "none"))
    known_files.cache_clear()
    yield lambda *overrides, **more: fetch(overrides, **more)
    known_files.cache_clear()


def test_what_cells_need_is_listed_with_sizes_and_comes_into_the_caches(
    fetched: Callable[..., int], hub: hub_server.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetched(*CELL, only_list=True) == 0
    said = capsys.readouterr().out
    assert "somebody/small@main: 1.0 MB to download" in said
    assert f"zjunlp/KnowEdit/{DATA_FILE}: " in said
    assert hub.sent == []  # nothing was downloaded
    assert fetched(*CELL, "editor=ft_m,kdpo", "T=1,2") == 0
    said = capsys.readouterr().out
    assert "4 cells" in said
    assert "missing" not in said
    assert {Path(file).suffix for file in hub.sent} == {".json", ".safetensors"}
    assert fetched(*CELL) == 0
    assert "0.0 MB to download in all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["model.path=somebody/gone"], "missing: somebody/gone@main: cannot be downloaded"),
        (["dataset.path=gone.json"], "missing: gone.json: no such file"),
    ],
)
def test_what_cannot_be_had_is_one_sentence_each(
    fetched: Callable[..., int], capsys: pytest.CaptureFixture[str], change: list[str], said: str
) -> None:
    assert fetched(*CELL, *change) == 1
    told = capsys.readouterr().out
    assert told.count("missing: ") == 1, told
    assert said in told


@pytest.mark.acceptance
def test_a_cell_runs_offline_from_what_was_fetched(tmp_path: Path, hub: hub_server.Server) -> None:
    def run(module: str, *arguments: str, **more: str) -> None:
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "KEDIT_DATA": "none", "HF_HUB_OFFLINE": "0"}
        env = {**os.environ, **own, "KEDIT_RUNS": str(tmp_path / "runs"), **more}
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stdout + done.stderr

    run("kedit.fetch", *CELL)
    run(
        "kedit.run",
        *CELL,
        "T=1",
        "dataset.limit=1",
        "tracker=none",
        HF_HUB_OFFLINE="1",
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    [meta] = (tmp_path / "runs").rglob("meta.json")
    assert json.loads(meta.read_text())["model_is"]["identity"] == f"somebody/small@{hub_server.COMMIT}"
