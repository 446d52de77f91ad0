"""Gated editors by the command: what a killed run continues with, and what python -m kedit.memory says of its state."""

import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_resume import Run, assert_same, cell, finish, said, start  # noqa: F401

from kedit.run.memory_command import main

LITTLE = {
    "grace": ["editor.steps=5"],
    "melo": ["editor.steps=5"],
    "wise": ["editor.steps=5", "editor.sampling.tokens=[2]", "editor.save_every=2", "editor.merge_every=4"],
    "serac": [
        "editor.scope.training.max_steps=1",
        "editor.scope.pairs.mined=0",
        "editor.scope.threshold=0.0",
        "editor.counterfactual.tuner.max_steps=1",
    ],
}
SHOWN = {  # in the list of six edits, and in what is said of a query
    "grace": ("radius", "distance"),
    "melo": ("cluster", "distance"),
    "wise": ("saved 0", "distance"),
    "serac": ("5", "probability"),
}


@pytest.mark.parametrize("editor", LITTLE)
def test_a_killed_run_continues_to_the_same_rows_and_entries(
    start: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    editor: str,
) -> None:
    edits = [f"editor={editor}", *LITTLE[editor], "T=6", "setting.checkpoints=[6]", "eval.fluency_tokens=0"]
    finish(start("straight", edits=edits))
    process = start("killed", "commit_every_s=0", edits=edits, killed=("commit", 5))
    text = said(process)
    assert process.returncode == -signal.SIGKILL, text
    assert "continuing after step" in finish(start("killed", "commit_every_s=0", edits=edits))
    straight, killed = (cell(tmp_path, name) for name in ("straight", "killed"))
    assert_same(straight, killed)
    for name in ("model", "editor"):
        one, other = (load_file(next(path.glob(f"state/*/{name}.safetensors"))) for path in (straight, killed))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    for arguments, shown in zip((["list"], ["explain", "Where does he work?"]), SHOWN[editor], strict=True):
        monkeypatch.setattr(sys, "argv", ["kedit.memory", str(straight), *arguments])
        main()
        assert shown in capsys.readouterr().out


def test_memory_says_what_it_cannot_do(
    start: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finish(start("runs", edits=["editor=grace", "editor.steps=1", "T=2", "eval.fluency_tokens=0"]))
    for arguments, wrong in ((["search", "x"], "use list or explain"), (["list", "--edit", "7"], "the edits 0 to 1")):
        monkeypatch.setattr(sys, "argv", ["kedit.memory", str(cell(tmp_path, "runs")), *arguments])
        with pytest.raises(SystemExit, match=wrong):
            main()
