"""Benchmark files that come by themselves, from a server on this machine: interrupted, cut, changed, moved, absent."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from file_server import FileServer, serving
from odd_files import MEND, ROME, text

from kedit.common import download
from kedit.common.cache import prune, sha256
from kedit.common.download import downloaded
from kedit.common.errors import InputError
from kedit.data import load
from kedit.data.choices import dataset_options
from kedit.data.missing_files import at_hand

CONTENT = text(*[ROME] * 300)
WRONG = "0" * 64


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KEDIT_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    with serving(CONTENT) as server:
        yield server


def again(url: str, expected: str | None = None) -> Path:
    """As another process would ask."""
    download._looked_up.cache_clear()
    return downloaded(url, expected)


def why_not(url: str, expected: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        again(url, expected)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_downloaded_once_and_its_sha256_is_recorded(server: FileServer) -> None:
    file = again(server.url())
    assert (file.name, file.read_bytes()) == ("data.json", CONTENT)
    assert again(server.url()) == file
    assert server.asked == ["/data.json"]
    record = json.loads(file.parent.with_suffix(".json").read_text())
    assert record == {"url": server.url(), "sha256": sha256(file), "bytes": len(CONTENT)}
    assert [path.name for path in file.parent.parent.iterdir() if path.is_dir()] == [file.parent.name]


def test_an_interrupted_download_goes_on_where_it_stopped(server: FileServer) -> None:
    server.cuts = [1000, 500]
    assert again(server.url()).read_bytes() == CONTENT
    assert server.asked == ["/data.json", "/data.json bytes=1000-", "/data.json bytes=1500-"]


def test_a_killed_run_is_continued_by_the_next_one(server: FileServer) -> None:
    server.cuts = [1000, 0, 0, 0]
    said = why_not(server.url())
    assert "the connection ended after 1,000 of" in said
    assert "1,000 bytes are kept, and the same command continues" in said
    assert again(server.url()).read_bytes() == CONTENT
    assert server.asked[-1] == "/data.json bytes=1000-"


@pytest.mark.parametrize("what", ["version", "ranges"])
def test_what_cannot_be_continued_begins_again(what: str, server: FileServer) -> None:
    """The file at the address is another one by now, or the server gives no parts of files."""
    server.cuts = [1000, 0, 0, 0]
    why_not(server.url())
    if what == "version":
        server.version, server.content = '"2"', text(*[ROME] * 301)
    server.with_ranges = what == "version"
    assert again(server.url()).read_bytes() == server.content


def test_a_server_that_tells_no_length(server: FileServer) -> None:
    server.with_length = False
    assert again(server.url()).read_bytes() == CONTENT


def test_more_bytes_than_the_server_has(server: FileServer) -> None:
    server.cuts = [1000, 0, 0, 0]
    why_not(server.url())
    [partial] = Path(download.cache_folder()).glob("downloads/.partial-*/data.json")
    partial.write_bytes(CONTENT + b"x")
    assert again(server.url()).read_bytes() == CONTENT


def test_a_moved_file_is_followed(server: FileServer) -> None:
    server.cuts = [1000]
    assert again(server.url("moved/data.json")).read_bytes() == CONTENT
    assert server.asked[-1] == "/data.json bytes=1000-"


def test_another_file_than_the_one_that_is_expected_is_refused(server: FileServer) -> None:
    said = why_not(server.url(), WRONG)
    assert f"has now the sha256 {sha256_of(CONTENT)}, not {WRONG}" in said
    assert again(server.url(), sha256_of(CONTENT)).read_bytes() == CONTENT


def sha256_of(content: bytes) -> str:
    from hashlib import sha256 as digest

    return digest(content).hexdigest()


@pytest.mark.parametrize("how", ["damaged", "pruned"])
def test_the_recorded_sha256_is_checked_ever_after(how: str, server: FileServer) -> None:
    """A damaged or deleted file is fetched again; if the address has another one by then, it is not used in silence."""
    file = again(server.url())
    if how == "damaged":
        file.write_bytes(CONTENT[:-1] + b"x")
    else:
        assert [line for line in prune(-1.0, really=True) if line.startswith("deleted")]
    assert again(server.url()).read_bytes() == CONTENT
    file.unlink()
    server.content = text(ROME)
    said = why_not(server.url())
    assert "the file was changed or damaged on its way; if you trust the new one, delete" in said
    file.parent.with_suffix(".json").unlink()
    assert again(server.url()).read_bytes() == server.content


def test_a_page_that_is_no_json_is_refused(server: FileServer) -> None:
    server.content = b"<html>Log in</html>"
    assert "gives no JSON but b'<html>Log in</html>'" in why_not(server.url())


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, 4)])
def test_a_server_that_refuses(status: int, requests: int, server: FileServer) -> None:
    server.status = status
    assert f"answers {status}" in why_not(server.url())
    assert len(server.asked) == requests


@pytest.mark.parametrize(("dataset", "record"), [("counterfact", ROME), ("zsre_mend", MEND)])
def test_datasets_name_the_address_of_the_benchmarks_own_code(
    dataset: str, record: dict, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dataset_options(dataset)
    server.content = text(record)
    assert options["url"].startswith("https://rome.baulab.info/data/dsets/")
    found = load(**options | {"url": server.url(options["url"].rpartition("/")[2])})
    assert (found.source, found.sha256) == (server.url(server.asked[0][1:]), sha256_of(server.content))
    folder = Path(download.cache_folder()).parent / "data"
    folder.mkdir()
    (folder / Path(options["url"]).name).write_bytes(text(record, record))
    assert len(load(**options).cases) == 2, "the folder KEDIT_DATA goes before the network"


def test_files_that_sweeps_name_come_by_themselves_too(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kedit.data.missing_files._origins", lambda: {"idf.npy": {"url": server.url("idf.npy")}})
    assert at_hand(tmp_path / "data" / "idf.npy").read_bytes() == CONTENT


@pytest.mark.parametrize("dataset", ["counterfact", "zsre_mend"])
def test_offline_one_sentence_says_which_file_to_put_where(
    dataset: str, refusal: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEDIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    said = refusal(f"dataset={dataset}", "editor=ft_m", "T=2")
    file = dataset_options(dataset)["url"].rpartition("/")[2]
    assert f"/data/dsets/{file} could not be downloaded (HF_HUB_OFFLINE is set); download it" in said
    assert f"put it into {tmp_path / 'data'}, the folder that KEDIT_DATA names" in said
    assert not list((tmp_path / "runs").rglob("seed*"))


def test_a_wrong_address_is_refused(refusal: Callable[..., str]) -> None:
    said = refusal("dataset=counterfact", "dataset.url=rome.baulab.info", "editor=ft_m", "T=2")
    assert "dataset.url" in said
    assert "http(s)://HOST/.../FILE" in said


def test_jobs_that_start_together_download_once(server: FileServer) -> None:
    with ThreadPoolExecutor(4) as jobs:
        files = list(jobs.map(lambda _: download._Download(server.url(), None).file(), range(4)))
    assert len(set(files)) == 1
    assert server.asked == ["/data.json"]
