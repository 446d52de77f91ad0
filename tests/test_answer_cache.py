"""The unedited model's answers on disk: what a look-up costs, and many processes at once."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from kedit.evaluation.answer_cache import AnswerCache


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count reads")
def test_a_look_up_of_answers_costs_what_is_asked(tmp_path: Path) -> None:
    """Of 20 000 kept answers of 1 kB, hundred are found by reading a few of the file's pages."""
    kept = AnswerCache(tmp_path / "folder")
    kept.keep({f"question {i}": {"generated": "x" * 1000} for i in range(20_000)})
    reads = pages_read(kept.file, [f"question {i}" for i in range(0, 20_000, 200)])
    assert reads < 600 < kept.file.stat().st_size / 4096 / 10


def pages_read(file: Path, questions: list[str]) -> int:
    """By a process of its own, as the system counts its reads."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom kedit.evaluation.answer_cache import AnswerCache\n"
        "count = lambda: int(dict(line.split(': ') for line in open('/proc/self/io'))['syscr'])\n"
        "before = count()\nfound = AnswerCache(Path(sys.argv[1])).get(sys.argv[2:])\n"
        "assert len(found) == len(sys.argv) - 2\nprint(count() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file.parent), *questions], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def keep_some(folder: Path, process: int) -> int:
    with FileLock(f"{folder}.lock"):
        AnswerCache(folder).keep({f"{process} {i}": {"answer": i} for i in range(50)})
    return len(AnswerCache(folder).get([f"{process} {i}" for i in range(50)]))


def test_eight_processes_keep_their_answers_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(8) as pool:
        assert pool.starmap(keep_some, [(tmp_path / "folder", i) for i in range(8)]) == [50] * 8
    questions = [f"{process} {i}" for process in range(8) for i in range(50)]
    assert len(AnswerCache(tmp_path / "folder").get(questions)) == 400
