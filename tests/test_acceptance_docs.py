"""`make acceptance`: the printed commands that need nothing but the world are run, with few edits."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import run_kedit
from test_docs import RUNS, own_folder

pytestmark = pytest.mark.acceptance

ELSEWHERE = re.compile(
    r"\b(model|dataset|sweeps)=|tracker\.mode=online|--info|--cfg|\b[A-Z]{3,}\b|trained=|endpoint|released"
)
OF_THE_WORLD = [command for command in RUNS if not ELSEWHERE.search(command)]


@pytest.mark.parametrize("command", OF_THE_WORLD)
def test_a_printed_command_runs(command: str, tmp_path: Path) -> None:
    """T is 2, and of each axis the first value is run."""
    own_folder(tmp_path)
    words = [word for word in shlex.split(command)[1:] if not word.startswith(("T=", "setting.checkpoints="))]
    given = [re.sub(r"^([\w./@]+=[^,\[\]{}]+),[^\[\]{}]*$", r"\1", word) for word in words if word != "-m"]
    done = run_kedit(tmp_path, *given, "T=2", "dataset.limit=2", "eval.fluency_tokens=0")
    assert done.returncode == 0, done.stderr
    assert "effective T=" in done.stdout
