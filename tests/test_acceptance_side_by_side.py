"""`make acceptance`: rows of 60 single edits of the world do not depend on how many are made side by side."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import run_kedit

pytestmark = pytest.mark.acceptance

CASES = os.environ.get("KEDIT_TEST_CASES", "60")
TIES = 0.005  # share of answers whose two best tokens may have changed places
NEAR = 1e-3  # nats, and relative
ADAPTERS = 2e-2  # the first steps of Adam make what is rounding alone in a new adapter's gradients as large as others
SINGLE = (
    *("ft_m", "ft_l", "kdpo", "kdpo_released", "dpo", "ft_m_overtone", "lora", "lora_overtone", "adalora"),
    *("rome", "memit", "swea_os", "ike", "kedas", "grace", "wise", "melo"),
)


def rows(folder: Path, editor: str, parallel: str, *options: str) -> list[dict[str, Any]]:
    folder.mkdir()
    given = [f"editor={editor}", f"dataset.limit={CASES}", f"parallel={parallel}", "eval.fluency_tokens=0", *options]
    done = run_kedit(folder, "seed=101", "tracker=none", *given)
    assert done.returncode == 0, done.stderr
    [file] = (folder / "runs").rglob("rows.jsonl")
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def differences(alone: list[dict[str, Any]], together: list[dict[str, Any]]) -> tuple[int, float, float]:
    """How many answers differ; the largest and the mean difference of an answer's NLL, over what is allowed at 1."""
    assert len(alone) == len(together)
    changed, far = 0, []
    for one, other in zip(alone, together, strict=True):
        for key in ("step", "case", "kind", "group", "probe", "when", "scoring"):
            assert one.get(key) == other.get(key)
        changed += any(one.get(key) != other.get(key) for key in ("token", "exact", "pred", "generated"))
        if "nll" in one:
            far.append(abs(one["nll"] - other["nll"]) / (1 + abs(one["nll"])))
    return changed, max(far), sum(far) / len(far)


@pytest.mark.parametrize(
    ("editor", "options"),
    [
        *((name, ("setting=single",)) for name in SINGLE),
        *((name, ("setting=blocks", "T=10")) for name in ("ft_m", "lora")),
    ],
)
def test_rows_do_not_depend_on_how_many_edits_are_made_side_by_side(
    tmp_path: Path, editor: str, options: tuple[str, ...]
) -> None:
    alone = rows(tmp_path / "1", editor, "1", *options)
    for parallel in ("4", "auto"):
        changed, far, mean = differences(alone, rows(tmp_path / parallel, editor, parallel, *options))
        said = f"{changed} of {len(alone)} answers differ, NLL by at most {far:.1e}, {mean:.1e} on average"
        sys.stdout.write(f"{editor} {' '.join(options)}: parallel=1 and {parallel}: {said}\n")
        assert changed <= TIES * len(alone)
        assert mean <= NEAR if "lora" in editor else far <= NEAR
        assert far <= ADAPTERS or "blocks" in options[0]
