"""A run killed anywhere continues to the same rows and the same final weights."""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import pytest
import torch
from conftest import TESTS
from forked import Forked
from safetensors.torch import load_file

from kedit.common.errors import InputError
from kedit.editors import Editor
from kedit.lm import LM
from kedit.loop.journal import Journal

RUN = ["tracker=none", "save=true", "keep_state=true", "eval.fluency_tokens=30"]
SEQUENCE = ["T=20", "setting.checkpoints=[7]"]
MASS = ["setting=mass", "T=8", "editor=ft_mask_para", "editor.checkpoint_s=0", "editor.epochs=4"]
Run = Callable[..., Forked]


@pytest.fixture
def start(tmp_path: Path) -> Run:
    """Start a run in its own folder of outputs; `killed`: what it is to die in, and when."""
    numbers = count()

    def run(
        folder: str, *overrides: str, killed: tuple[str, int] | None = None, edits: Sequence[str] = SEQUENCE
    ) -> Forked:
        program = str(TESTS / "killed.py") if killed else "kedit.run"
        arguments = [*map(str, killed or ()), *RUN, *edits, *overrides]
        env = {**os.environ, "KEDIT_RUNS": str(tmp_path / folder)}
        return Forked(program, arguments, env=env, cwd=tmp_path, says=tmp_path / f"said{next(numbers)}")

    return run


def cell(tmp_path: Path, folder: str) -> Path:
    [found] = {path.parent for path in (tmp_path / folder).rglob("status")}
    return found


def said(process: Forked, timeout: float = 300) -> str:
    """All that it wrote until it ended."""
    return "".join(process.communicate(timeout))


def finish(process: Forked) -> str:
    text = said(process)
    assert process.returncode == 0, text
    return text


def assert_same(one: Path, other: Path) -> None:
    """Rows, texts and numbers; what the steps did; every weight."""
    assert (one / "rows.jsonl").read_text() == (other / "rows.jsonl").read_text()
    told = [
        [{k: v for k, v in json.loads(line).items() if not k.endswith("_s")} for line in text.splitlines()]
        for text in ((path / "steps.jsonl").read_text() for path in (one, other))
    ]
    assert told[0] == told[1]
    a, b = (load_file(path / "model" / "model.safetensors") for path in (one, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (one / "status").read_text() == (other / "status").read_text() == "finished"


def test_a_mass_edit_killed_in_its_training_continues_at_its_checkpoint(start: Run, tmp_path: Path) -> None:
    finish(start("straight", edits=MASS))
    process = start("killed", edits=MASS)
    while process.poll() is None and not list((tmp_path / "killed").rglob("training.safetensors")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "continues after its step" in finish(start("killed", edits=MASS))
    assert_same(cell(tmp_path, "straight"), cell(tmp_path, "killed"))


@pytest.mark.acceptance
@pytest.mark.parametrize(("editor", "T"), [("alphaedit", 200), ("kedas", 60)])
def test_what_an_editor_learnt_is_there_after_a_kill(start: Run, tmp_path: Path, editor: str, T: int) -> None:
    """AlphaEdit: the keys of all edits so far; KEDAS: their wordings, by filter and adapter from the cache."""
    edits = [f"editor={editor}", f"T={T}", "commit_every_s=1"]
    finish(start("straight", edits=edits))
    rng = random.Random(os.environ.get("KEDIT_TEST_SEED", "7"))
    for steps in sorted(rng.sample(range(T // 10, T - T // 10), 2)):
        process = start("killed", edits=edits)
        while process.poll() is None and len(read_steps(tmp_path)) <= steps:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert "continuing after step" in finish(start("killed", edits=edits))
    assert_same(cell(tmp_path, "straight"), cell(tmp_path, "killed"))


def test_a_run_killed_at_random_moments_and_inside_writes(start: Run, tmp_path: Path) -> None:
    finish(start("straight"))
    rng = random.Random(os.environ.get("KEDIT_TEST_SEED", "7"))
    for attempt in range(3):  # kill -9 at random moments, later each time
        process = start("killed", "commit_every_s=0")
        steps = attempt * 6 + rng.randint(0, 5)
        while process.poll() is None and len(read_steps(tmp_path)) <= steps:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    for where, n in (("rows", 2), ("state", 3), ("commit", 2), ("meta", 1)):
        process = start("killed", "commit_every_s=0", killed=(where, n))
        process.wait()
        assert process.returncode == -signal.SIGKILL, where
    finish(start("killed", "commit_every_s=0"))
    assert_same(cell(tmp_path, "straight"), cell(tmp_path, "killed"))


def read_steps(tmp_path: Path) -> list[str]:
    """Walks as folders of state come and go, where rglob would stumble."""
    places = [Path(folder) for folder, _, files in os.walk(tmp_path / "killed") if "steps.jsonl" in files]
    return (places[0] / "steps.jsonl").read_text().splitlines() if places else []


def test_sigterm_commits_the_step_and_exits(start: Run, tmp_path: Path) -> None:
    process = start("killed")
    while process.poll() is None and len(read_steps(tmp_path)) < 4:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out = said(process)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command continues" in out
    commit = json.loads((cell(tmp_path, "killed") / "state" / "commit.json").read_text())
    assert commit["step"] == json.loads(read_steps(tmp_path)[-1])["step"]
    assert "continuing after step" in finish(start("killed"))


def test_two_runs_in_one_directory_at_once(start: Run, tmp_path: Path) -> None:
    first = start("killed")
    while first.poll() is None and not read_steps(tmp_path):
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)
    second = start("killed")
    out = said(second)
    assert second.returncode == 1
    assert "another run is at work here" in out
    assert "Traceback" not in out
    first.send_signal(signal.SIGCONT)
    finish(first)


# --- the journal alone -----------------------------------------------------------------------------------------------


def test_a_directory_with_another_config_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "cell", "T: 1\nlr: 2\n"):
        pass
    with pytest.raises(InputError, match=r"lr: there 2, now 3"), Journal(tmp_path / "cell", "T: 1\nlr: 3\n"):
        pass
    with (
        pytest.raises(InputError, match=r"e: there not there, now None"),
        Journal(tmp_path / "cell", "T: 1\nlr: 2\ne:\n"),
    ):
        pass


def test_a_directory_whose_parent_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be made.*KEDIT_RUNS"), Journal(tmp_path / "file" / "cell", ""):
        pass


def test_a_continued_run_must_share_data_model_and_libraries(tmp_path: Path) -> None:
    meta = {"data": {"sha256": "a"}, "model_is": {"identity": "m"}, "versions": {"torch": "2"}}
    with Journal(tmp_path / "cell", "") as journal:
        journal.describe(meta)
        journal.describe(meta | {"seconds": 3})
        with pytest.raises(InputError, match="another data"):
            journal.describe(meta | {"data": {"sha256": "b"}})


def test_what_was_written_after_the_last_commit_is_cut_off(tmp_path: Path, lm: LM) -> None:
    class Remembers(Editor):
        learnt = "nothing"

        def state(self) -> dict[str, torch.Tensor | str]:
            return {"text": self.learnt, "tensor": torch.ones(2)}

        def load_state(self, lm: LM, state: object) -> None:
            self.learnt = state["text"]  # type: ignore[index]
            assert torch.equal(state["tensor"], torch.ones(2))  # type: ignore[index]

    editor = Remembers()
    with Journal(tmp_path / "cell", "", every_s=1000.0) as journal:
        assert journal.resume(lm, editor) == -1
        journal.write({"step": 1}, [{"case": "a"}])
        editor.learnt = "a"
        journal.commit(lm, editor, now=True)
        journal.write({"step": 2}, [{"case": "b"}])
        journal.commit(lm, editor, now=False)
        with open(tmp_path / "cell" / "rows.jsonl", "a") as file:
            file.write('{"torn')
    editor = Remembers()
    with Journal(tmp_path / "cell", "") as journal:
        assert journal.resume(lm, editor) == 1
        assert journal.rows == [{"case": "a"}]
        assert editor.learnt == "a"
        journal.write({"step": 2}, [{"case": "c"}])
    assert (tmp_path / "cell" / "rows.jsonl").read_text() == '{"case": "a"}\n{"case": "c"}\n'
