"""The cache: built once, whole or not at all, mended when damaged."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from kedit.common.cache import cache_folder, cached, remembered_sha256
from kedit.common.errors import InputError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(folder: Path) -> None:
    (folder / "built").write_text("once")


def test_an_artefact_is_built_once_for_each_key() -> None:
    home = cached("thing", {"a": 1}, build)
    assert (home / "built").read_text() == "once"
    assert cached("thing", {"a": 1}, lambda _: pytest.fail("built again")) == home
    assert cached("thing", {"a": 2}, build) != home


def test_a_failed_build_leaves_nothing(own_cache: Path) -> None:
    def broken(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("out of disk")

    with pytest.raises(RuntimeError, match="out of disk"):
        cached("thing", {}, broken)
    assert [p.name for p in (own_cache / "thing").iterdir() if p.suffix != ".lock"] == []
    assert cached("thing", {}, build).exists()


@pytest.mark.parametrize("damage", [lambda f: f.write_text("torn"), lambda f: f.unlink()])
def test_a_damaged_artefact_is_built_again(damage: object, caplog: pytest.LogCaptureFixture) -> None:
    home = cached("thing", {}, build)
    damage(home / "built")  # type: ignore[operator]
    cached("thing", {}, build)
    assert (home / "built").read_text() == "once"
    assert "damaged" in caplog.text


def slow(folder: Path) -> None:
    with open(os.environ["KEDIT_CACHE"] + "-builds", "a") as file:
        file.write("built\n")
    time.sleep(0.3)
    build(folder)


def job(_: int) -> str:
    return (cached("thing", {"shared": True}, slow) / "built").read_text()


def test_jobs_that_start_together_build_once(own_cache: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(job, range(4)) == ["once"] * 4
    assert Path(f"{own_cache}-builds").read_text() == "built\n"


def test_a_cache_that_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="KEDIT_CACHE"):
        cache_folder()


def test_the_hash_of_a_large_file_is_remembered(tmp_path: Path, own_cache: Path) -> None:
    large = tmp_path / "large"
    with open(large, "wb") as file:
        file.truncate(2**26)
    first = remembered_sha256(large)
    assert remembered_sha256(large) == first
    assert len(list((own_cache / "sha256").glob("*/sha256"))) == 1
    with open(large, "r+b") as file:
        file.write(b"x")
    assert remembered_sha256(large) != first
