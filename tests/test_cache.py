"""The cache: built once, whole or not at all, again if damaged; read where nobody may write; pruned beside runs."""

import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kedit import world
from kedit.cases import questions_of
from kedit.common.cache import cache_folder, cached, contents, mark_used, prune, remembered_sha256, writing_lock
from kedit.common.errors import InputError
from kedit.common.reply_cache import Replies
from kedit.evaluation.baseline import baseline_answers
from kedit.evaluation.evaluator import Evaluator
from kedit.lm import LM


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


# --- pruned beside runs ----------------------------------------------------------------------------------------------


def old(home: Path, days: float = 40) -> Path:
    os.utime(home, (time.time() - days * 86400,) * 2)
    return home


def test_what_is_used_while_others_are_deleted_is_kept() -> None:
    first, second = sorted(old(cached("thing", {"a": i}, build)) for i in range(2))
    lines = prune(30.0, really=True)
    assert next(lines).startswith(f"deleted {first}")
    assert cached("thing", {"a": 0}, build).exists()
    mark_used(second)  # a run comes while the list is worked through
    assert next(lines).startswith(f"in use now, kept: {second}")
    assert (second / "built").read_text() == "once"


def test_what_is_being_built_is_kept(own_cache: Path) -> None:
    def slowly(folder: Path) -> None:
        old(folder)
        assert [line.split(" (")[0] for line in prune(30.0, really=True)][:1] == [f"in use now, kept: {folder}"]
        build(folder)

    assert (cached("thing", {}, slowly) / "built").read_text() == "once"


@pytest.mark.parametrize("kind", ["baseline", "replies"])
def test_what_grows_from_run_to_run_is_locked_beside_its_folder(own_cache: Path, kind: str) -> None:
    """Else a run that waits for the lock gets it in a folder that has been deleted."""
    home = own_cache / kind / "0123"
    home.mkdir(parents=True)
    old(home)
    with writing_lock(home):
        assert next(prune(30.0, really=True)).startswith("in use now")
    assert next(prune(30.0, really=True)).startswith("deleted")
    assert not home.exists()
    with writing_lock(home):
        home.mkdir()


def test_a_folder_that_somebody_else_deletes_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _, second = sorted(old(cached("thing", {"a": i}, build)) for i in range(2))
    lines = prune(30.0, really=True)
    next(lines)
    shutil.rmtree(second)
    assert len(list(lines)) == 2
    assert contents().startswith("cache ")


# --- a cache that may only be read -----------------------------------------------------------------------------------


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache that anybody can look into."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setenv("KEDIT_CACHE", folder)
        yield Path(folder)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing below the folder can be written; root, who always can, becomes nobody meanwhile."""
    modes = {path: path.stat().st_mode for path in [folder, *folder.rglob("*")]}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222 | 0o444)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            (folder / "new").touch()
        yield
    finally:
        if was_root:
            os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


def big_file(folder: Path) -> str:
    with open(folder / "large", "wb") as file:
        file.truncate(2**26)
    (folder / "large").chmod(0o644)
    return remembered_sha256(folder / "large")


WARM: dict[str, Callable[[LM, Path], object]] = {
    "an artefact": lambda lm, folder: (cached("thing", {}, build) / "built").read_text(),
    "a hash": lambda lm, folder: remembered_sha256(folder / "large"),
    "replies": lambda lm, folder: Replies({"model": "m"}).get("who?"),
    "answers": lambda lm, folder: baseline_answers(lm, Evaluator(fluency_tokens=0), ASKED[:3]),
    "its contents": lambda lm, folder: contents(),
}
ASKED = questions_of(world.cases(edits=1, limit=1, seed=2).cases[0], ("reliability", "locality", "portability"))


@pytest.mark.parametrize("name", WARM)
def test_a_warm_cache_that_may_only_be_read(lm: LM, shared: Path, name: str) -> None:
    big_file(shared)
    replies = Replies({"model": "m"})
    with replies.alone():
        replies.keep("who?", "me")
    first = WARM[name](lm, shared)
    with read_only(shared):
        assert WARM[name](lm, shared) == first


def test_what_a_cache_that_may_only_be_read_does_not_have(
    lm: LM, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = Evaluator(fluency_tokens=0)
    first = baseline_answers(lm, evaluator, ASKED[:2])
    with read_only(shared):
        with pytest.raises(InputError, match=r"does not have thing/.*set KEDIT_CACHE to a writable folder"):
            cached("thing", {}, build)
        more = baseline_answers(lm, evaluator, ASKED)
    assert {q: more[q] for q in first} == first
    assert len(more) == len(ASKED)
    assert "are not kept" in caplog.text
