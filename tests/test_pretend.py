"""Editors on a pretend CUDA (tests/pretend): no tensor on another device, and a bound on what a step costs the host.

It runs in a process of its own, because the pretend CUDA must be there before torch is imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PRETEND = Path(__file__).parent / "pretend"
sys.path.insert(0, str(PRETEND))
from build import library, why_not  # noqa: E402

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
FAMILIES = (
    *("ft", "ft_m", "kdpo", "dpo", "lora", "adalora", "rome", "memit", "pmet", "alphaedit", "kn", "swea_os"),
    *("grace", "melo", "wise", "serac", "recipe", "ike", "eren", "lte", "mend"),
)
# editor:shape:dtype:devices of `make test`: each family of code once, each dtype, both layouts
FEW = (
    *("ft_m:llama:float32:1", "lora:gpt2:bfloat16:2", "rome:llama:bfloat16:2", "memit:gpt2:float32:1"),
    *("grace:llama:float32:2", "kn:gpt2:bfloat16:2", "ft:gpt2:float32:2"),
)
ALL = [
    f"{editor}:{shape}:{dtype}:{devices}"
    for editor in FAMILIES
    for shape in ("llama", "gpt2")
    for dtype in ("float32", "bfloat16")
    for devices in (1, 2)
    if (editor, devices) != ("adalora", 2)  # refused: peft's allocator needs its layers on one device
]


def on_pretend_devices(cases: tuple[str, ...] | list[str]) -> dict[str, dict[str, Any]]:
    """What tests/pretend/editors.py says of each case."""
    paths = os.pathsep.join([str(PRETEND), str(PRETEND.parents[1])])
    env = {**os.environ, "PYTHONPATH": paths, "PRETEND_LIB": str(library()), "PRETEND_DEVICES": "2"}
    env.pop("CUDA_VISIBLE_DEVICES", None)
    command = [sys.executable, str(PRETEND / "editors.py"), *cases]
    done = subprocess.run(command, env=env, capture_output=True, encoding="utf-8")
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(cases), done.stderr
    return {one["case"]: one for one in found}


@pytest.fixture(scope="module")
def few() -> dict[str, dict[str, Any]]:
    return on_pretend_devices(FEW)


@pytest.mark.parametrize("case", FEW)
def test_an_editor_edits_is_undone_and_continues_on_gpus(few: dict[str, dict[str, Any]], case: str) -> None:
    assert "error" not in few[case], few[case].get("trace")


@pytest.mark.acceptance
def test_every_editor_edits_is_undone_and_continues_on_gpus(record_property: Any) -> None:
    found = on_pretend_devices(ALL)
    failed = {case: result["error"] for case, result in found.items() if "error" in result}
    for case, result in sorted(found.items()):
        if result.get("steps"):
            each = {kind: round(result.get(kind, 0) / result["steps"], 1) for kind in ("launch", "sync", "h2d", "d2d")}
            sys.stdout.write(f"{case}: {each}\n")
    assert failed == {}, f"{len(failed)} of {len(found)}: {json.dumps(failed, indent=1)}"


# Most events in an edit, beyond what an edit costs once: per optimiser or value step. The goal is one synchronisation
# (the loss that the stop rule reads) and no copy from the host.
BUDGETS = {
    "ft_m:llama:float32:1": {"sync": 1, "h2d": 1},
    "lora:gpt2:bfloat16:2": {"sync": 1, "h2d": 1},
    "grace:llama:float32:2": {"sync": 1, "h2d": 0},
    "memit:gpt2:float32:1": {"sync": 21, "h2d": 1},
    "rome:llama:bfloat16:2": {"sync": 21, "h2d": 1},
}
ONCE = 40  # events of an edit outside of its steps


@pytest.mark.parametrize(("case", "kind"), [(case, kind) for case, budget in BUDGETS.items() for kind in budget])
def test_a_step_makes_the_host_wait_and_copy_no_more_than_budgeted(
    few: dict[str, dict[str, Any]], case: str, kind: str
) -> None:
    seen = few[case]
    assert "steps" in seen, seen.get("error")
    assert seen.get(kind, 0) <= BUDGETS[case][kind] * seen["steps"] + ONCE, seen["where"]
