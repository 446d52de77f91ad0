"""wandb holds everything and is never in the way: read back with its own tool, with servers that refuse or die."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb
from conftest import TESTS, run_kedit
from test_run import QUICK

from kedit.editors import Editor
from kedit.evaluation.evaluator import Evaluator
from kedit.lm import LM
from kedit.loop.in_memory_journal import InMemoryJournal
from kedit.loop.runner import Run
from kedit.loop.step_runner import StepRunner
from kedit.loop.tracker import EDITS, TABLE_ROWS, Report, Tracker, Wandb, _parts, _table, mode_of, run_id
from kedit.reports.dashboard import flat_config, plain
from kedit.reports.wandb_workspace import SCORES, as_json, workspace

KEY = "0" * 40
Server = Callable[..., str]


def recorded(run: Path) -> dict[str, list[Any]]:
    """What wandb's own tool finds in a run's directory, by the type of the record."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, list[Any]] = {}
    for line in done.stdout.splitlines():
        record = json.loads(line)
        found.setdefault(record["type"], []).append(record.get(record["type"]))
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


SWEEP = [
    "sweeps=quickstart",
    "editor=kdpo,ft_m",
    "T=4",
    "setting.checkpoints=[2]",
    "eval.fluency_tokens=20",
    "tracker=wandb",
]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small named sweep, tracked offline."""
    folder = tmp_path_factory.mktemp("tracked")
    done = run_kedit(folder, *SWEEP)
    assert done.returncode == 0, done.stderr
    return folder / "runs/quickstart"


@pytest.fixture(scope="module")
def cell(tracked: Path) -> Path:
    [meta] = (tracked / "world/world/ft_m").rglob("meta.json")
    return meta.parent


@pytest.fixture(scope="module")
def records(cell: Path) -> dict[str, list[Any]]:
    [run] = cell.glob("wandb/offline-run-*")
    return recorded(run)


def test_wandb_holds_every_edit(cell: Path, records: dict[str, list[Any]]) -> None:
    rows = [row for row in lines(cell / "rows.jsonl") if row["kind"] != "benchmark"]  # those of probes
    logged = {one["item"]["_step"]: one["item"] for one in records["history"]}
    assert sorted(logged) == [0, 1, 2, 3, 4]
    for step in lines(cell / "steps.jsonl"):
        item = logged[step["step"]]
        assert {key: item[key] for key in step if isinstance(step[key], int) and key != "step"} == {
            key: value for key, value in step.items() if isinstance(value, int) and key != "step"
        }
        if step["step"]:
            assert item["loss"] == pytest.approx(step["loss"])
            [mine] = [row["token"] for row in rows if row["when"] == "edit" and row["step"] == step["step"]]
            assert item["edit/edit_success"] == pytest.approx(100 * mine)
    assert "test/locality" in logged[2]


def test_wandbs_summary_has_the_tables_numbers_by_name(cell: Path, records: dict[str, list[Any]]) -> None:
    summary: dict[str, float] = {}
    for one in records["summary"]:
        summary |= one["update"]
    table = pd.read_csv(cell / "table.csv").set_index("T")
    for column in ("edit success", "generality", "portability", "locality", "fluency", "HM"):
        name = column.lower().replace(" ", "_")
        assert summary[name] == summary[f"{name}_T4"] == pytest.approx(table.loc[4, column])
        assert summary[f"{name}_T2"] == pytest.approx(table.loc[2, column])
        assert summary[f"{name}_unedited"] == pytest.approx(table.loc[0, column])
    assert (summary["n_cases"], summary["failed_edits"]) == (4, 0)
    assert summary["seconds_edit"] > 0
    assert all(key.replace("_", "").isalnum() for key in summary if "/" not in key and "." not in key)


def test_wandb_knows_what_the_run_is(records: dict[str, list[Any]]) -> None:
    [run] = records["run"]
    assert run["run_group"] == "quickstart"
    assert set(run["tags"]) == {"model:world", "dataset:world", "editor:ft_m", "setting:sequential", "T:4", "seed:101"}
    config = run["config"]["update"]
    known = {
        "editor": "ft_m",
        "editor.lr": 5e-4,
        "editor.loss": "CrossEntropy",
        "T": 4,
        "seed": 101,
        "setting": "sequential",
    }
    assert {key: config[key] for key in known} == known
    assert config["data.sha256"]
    assert not any(isinstance(value, dict) for key, value in config.items() if key != "_wandb")
    assert not any(key.startswith(("tracker", "runs", "threads")) for key in config)


def test_wandb_knows_over_what_a_history_is_drawn(records: dict[str, list[Any]]) -> None:
    """The number of edits; a summary has the last test's scores, and the mean over edits of their own."""
    defined = {one.get("name") or one.get("glob_name"): one for one in records["metric"]}
    assert {"edit/*", "test/*", "*", EDITS} <= {*defined}
    assert all(defined[name]["step_metric"] == EDITS for name in ("*", "edit/*", "test/*"))
    assert defined["test/*"]["summary"] == {"last": True}
    assert defined["edit/*"]["summary"] == {"mean": True}
    assert [one["item"].get(EDITS) for one in records["history"][:5]] == [0, 1, 2, 3, 4]


def test_a_continued_run_goes_on_counting_its_edits(lm: LM) -> None:
    journal = InMemoryJournal()
    journal.write({"step": 1, "edits": 3, "cases": ["a"]}, [])
    journal.write({"step": 2, "cases": ["b", "c"]}, [])  # of an older kedit
    editor, evaluator = Editor(), Evaluator()
    assert Run(lm, editor, StepRunner(lm, editor, evaluator, {}), journal, Tracker(), 9).edits == 5


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "nonsense"}, "offline"),
        ({"WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "disabled"),
        ({"WANDB_DISABLED": "false"}, "offline"),
        ({"WANDB_DISABLED": ""}, "offline"),
    ],
)
def test_wandbs_own_variables_come_before_the_option(environment: dict[str, str], mode: str) -> None:
    assert mode_of(environment, "offline") == mode


@pytest.mark.parametrize(("variable", "value"), [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true")])
def test_a_disabled_tracker_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    tracker = Wandb(mode="online")
    tracker.start(directory=tmp_path, name="a", group="b", config={})
    tracker.log(1, {"x": 1})
    tracker.finish(Report())
    assert not list(tmp_path.iterdir())


def test_an_id_given_by_hand_is_one_cells() -> None:
    """The agent's or the user's for a cell alone; in a grid each cell has its own, the same when it is continued."""
    assert run_id("adhoc/x", "mine", alone=True) == "mine"
    ids = [run_id(f"adhoc/{name}", given, alone=False) for name in "xy" for given in ("mine", "other", "")]
    assert len(set(ids)) == 6
    assert run_id("adhoc/x", "mine", alone=False) == ids[0]
    assert run_id("adhoc/x", "", alone=True) == run_id("adhoc/x", "", alone=False)


def test_a_dashboard_shows_what_runs_have() -> None:
    view = json.loads(as_json(workspace("us", sweep="quickstart")))
    text = json.dumps(view)
    assert [section["name"] for section in view["spec"]["section"]["panelBankConfig"]["sections"]][:2] == [
        "Scores of the last test",
        "Over the edits",
    ]
    for name in (EDITS, "edit/edit_success", "test/locality", "hm", "radar", "quickstart", "all cells"):
        assert f'"{name}"' in text


def test_a_dashboard_names_only_what_a_cell_tracks(cell: Path, records: dict[str, list[Any]]) -> None:
    summary = {key for one in records["summary"] for key in one["update"]}
    history = {key for one in records["history"] for key in one["item"]}
    assert {*SCORES} <= summary
    assert {EDITS, "edit/edit_success", "test/locality", "test/generality", "perplexity", "weight_change"} <= history
    assert {"editor.lr", "editor.steps"} <= {*records["run"][0]["config"]["update"]}


def test_wandb_has_the_rows_and_the_pictures(tracked: Path, cell: Path, records: dict[str, list[Any]]) -> None:
    last = records["history"][-1]["item"]
    [run] = cell.glob("wandb/offline-run-*")
    table = json.loads((run / "files" / last["rows.path"]).read_text())
    rows = [row for row in lines(cell / "rows.jsonl") if row["kind"] != "benchmark"]  # those of probes
    assert len(table["data"]) == len(rows)
    for there, row in zip(table["data"], rows, strict=True):
        kept = {key: value for key, value in zip(table["columns"], there, strict=True) if value is not None}
        assert {key: kept[key] for key in row} == row
    for picture in ("radar", "retention"):
        assert (run / "files" / last[f"{picture}.path"]).read_bytes() == (cell / f"{picture}.png").read_bytes()
    [whole] = tracked.glob("wandb/offline-run-*")
    everything = recorded(whole)
    assert everything["run"][0]["display_name"] == "all cells"
    assert {"radar.path", "retention.path", "scatter.path", "table.path"} <= {*everything["history"][-1]["item"]}


def test_a_sweep_that_is_shown_again_is_not_tracked_again(tracked: Path) -> None:
    assert run_kedit(tracked.parents[1], *SWEEP).returncode == 0
    assert len(list(tracked.rglob("*.wandb"))) == 3


def test_nothing_of_a_long_table_is_cut_off() -> None:
    frame = pd.DataFrame({"a": range(2 * TABLE_ROWS + 1)})
    parts = _parts("rows", frame)
    assert [name for name, _ in parts] == ["rows", "rows_2", "rows_3"]
    assert pd.concat(part for _, part in parts).equals(frame)
    assert [(name, len(part)) for name, part in _parts("rows", frame[:0])] == [("rows", 0)]


def test_a_table_has_the_values_and_types_that_wandb_finds_row_by_row() -> None:
    frame = plain(pd.DataFrame({"n": [1, 2], "x": [0.5, None], "route": [{"to": "é"}, None], "none": [None, None]}))
    ours, theirs = _table(frame), wandb.Table(dataframe=frame)
    assert ours.columns == theirs.columns
    assert ours.data == [[1, 0.5, '{"to": "é"}', None], [2, None, None, None]]
    types = [{name: repr(kind) for name, kind in t._column_types.params["type_map"].items()} for t in (ours, theirs)]
    assert types[0].keys() == types[1].keys()
    assert all("Number" in types[0][name] for name in ("n", "x"))
    assert all("String" in types[0][name] for name in ("route", "none"))


def test_columns_hold_one_kind_of_value() -> None:
    made = plain(
        pd.DataFrame({"a": [1.5, None], "route": [{"to": "é"}, None], "pred": ["x", None], "ids": [[1, 2], []]})
    )
    assert made["route"].tolist() == ['{"to": "é"}', None]
    assert made["pred"].tolist() == ["x", None]
    assert made["ids"].tolist() == ["[1, 2]", "[]"]
    assert made["a"].dtype == float


def test_a_config_is_flat_and_says_choices_by_name() -> None:
    editor = {
        "_target_": "kedit.x.FineTune",
        "lr": 1,
        "loss": {"_target_": "kedit.y.KDPO", "_partial_": True, "beta": 2},
    }
    given = flat_config(
        {"editor": editor, "T": 3}, {"editor": "kdpo", "machine": {"python": "3"}, "data": {"sha256": "a"}}
    )
    assert given == {
        "editor": "kdpo",
        "editor.lr": 1,
        "editor.loss": "KDPO",
        "editor.loss.beta": 2,
        "T": 3,
        "data.sha256": "a",
    }


# --- servers that are not there --------------------------------------------------------------------------------------


def refused() -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Starts tests/wandb_server.py; its address."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*how: str) -> str:
        port = tmp_path / f"port{len(started)}"
        started.append(subprocess.Popen([sys.executable, str(TESTS / "wandb_server.py"), str(port), *how]))
        while not (port.exists() and port.read_text()):
            time.sleep(0.05)
        return f"http://127.0.0.1:{port.read_text()}"

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_wandb_never_stops_a_run(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "wandb.py").write_text("raise ImportError('no wandb on this machine')")
    done = run_kedit(tmp_path, *QUICK, "tracker=wandb", PYTHONPATH=str(tmp_path / "broken"))
    assert done.returncode == 0, done.stderr
    assert "no wandb on this machine" in done.stdout
    assert list((tmp_path / "runs").rglob("table.md"))


def online(tmp_path: Path, url: str, *given: str) -> tuple[subprocess.CompletedProcess[str], list[Path]]:
    """Two cells tracked online; what was said, and the cells."""
    keys = {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
    tracker = ["tracker=wandb", "tracker.mode=online", "tracker.finish_timeout=3"]
    done = run_kedit(tmp_path, "-m", *QUICK, "editor=ft_m", "seed=1,2", *tracker, *given, **keys)
    assert done.returncode == 0, done.stderr
    cells = sorted(path.parent for path in (tmp_path / "runs").rglob("status"))
    assert [(cell / "status").read_text() for cell in cells] == ["finished"] * 2
    return done, cells


def steps_in(cell: Path) -> list[int]:
    """Of all parts of its wandb run."""
    parts = [recorded(run) for run in cell.glob("wandb/*run-*")]
    return sorted({one["item"]["_step"] for part in parts for one in part["history"]})


def test_a_server_that_refuses_is_said_once_and_the_runs_are_kept_offline(tmp_path: Path) -> None:
    done, cells = online(tmp_path, refused(), "tracker.init_timeout=100")
    assert done.stdout.count("no server answers at http://127.0.0.1") == 1
    assert all(steps_in(cell) == [0, 1, 2, 3] for cell in cells)
    assert all("offline-run" in run.name for cell in cells for run in cell.glob("wandb/*run-*"))


def test_a_server_that_dies_costs_nothing(tmp_path: Path, server: Server) -> None:
    done, cells = online(tmp_path, server("dies"))
    assert "the rest of" in done.stdout
    assert done.stdout.count("no server answers") == 1
    assert all(steps_in(cell) == [0, 1, 2, 3] for cell in cells)
    for cell in cells:  # the end is in an offline part
        [last] = cell.glob("wandb/offline-run-*")
        found = recorded(last)
        assert "rows.path" in found["history"][-1]["item"]
        assert "edit_success" in {key for one in found["summary"] for key in one["update"]}
        assert found["run"][0]["run_id"] == recorded(next(iter(cell.glob("wandb/*run-*"))))["run"][0]["run_id"]


# --- python -m kedit.sync --------------------------------------------------------------------------------------------


def sync(place: Path, url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    env |= {"WANDB_BASE_URL": url, "HOME": str(place), "PYTHONPATH": str(TESTS.parent)} | environment
    command = [sys.executable, "-m", "kedit.sync", str(place), "--timeout", "60"]
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.fixture
def offline(tmp_path: Path) -> list[Path]:
    """Three directories with an offline run of numbers each."""
    code = (
        "import sys, wandb\n"
        "for name in sys.argv[1:]:\n"
        "    settings = wandb.Settings(console='off', silent=True)\n"
        "    run = wandb.init(project='kedit', dir=name, mode='offline', settings=settings)\n"
        "    for i in range(300): run.log({'a': i}, step=i)\n"
        "    run.finish()\n"
    )
    folders = [tmp_path / "cells" / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", code, *map(str, folders)], check=True, capture_output=True)
    return folders


def test_sync_uploads_each_cell_once_and_says_what_failed(tmp_path: Path, server: Server, offline: list[Path]) -> None:
    url, place = server(), tmp_path / "cells"
    torn, broken = (next(iter(folder.glob("wandb/*/*.wandb"))) for folder in offline[1:])
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])  # as a killed run leaves it
    broken.write_text("rubbish")
    done = sync(place, url, WANDB_API_KEY=KEY)
    assert done.returncode == 1, done.stdout + done.stderr
    said = done.stdout.splitlines()
    assert [line.partition(" (1 part)")[0] for line in said[:3]] == [
        f"uploaded: {offline[0]}",
        f"uploaded: {offline[1]}",
        f"failed: {offline[2]}",
    ]
    assert "bad header" in said[2]
    assert said[3] == "3 runs: 2 uploaded, 1 failed"
    broken.unlink()
    again = sync(place, url, WANDB_API_KEY=KEY)
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, "2 runs: 2 uploaded before")


def test_sync_without_server_or_key_says_so_in_one_sentence(
    tmp_path: Path, server: Server, offline: list[Path]
) -> None:
    place = tmp_path / "cells"
    for url, key, said in ((refused(), {"WANDB_API_KEY": KEY}, "no server answers"), (server(), {}, "no API key")):
        done = sync(place, url, **key)
        assert done.returncode == 1
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert not list(place.rglob("*.synced"))
    (tmp_path / "empty").mkdir()
    assert "no wandb run there" in sync(tmp_path / "empty", refused()).stderr
