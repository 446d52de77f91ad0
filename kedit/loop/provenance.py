"""What made a number: code, libraries, data, model, machine; and what it cost."""

import logging
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kedit.cases import BENCHMARK
from kedit.common.cache import remembered_sha256
from kedit.common.dotted import dotted
from kedit.data import Dataset
from kedit.evaluation.baseline import noise_floor
from kedit.evaluation.evaluator import Evaluator
from kedit.lm import LM
from kedit.lm.peak_memory import peak_memory_mb
from kedit.loop.settings import Step
from kedit.loop.step_runner import all_questions

log = logging.getLogger(__name__)

SECONDS = ("edit_s", "eval_s", "measures_s")  # a step's costs
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "tokenizers")  # those that can change a score


def describe(lm: LM, dataset: Dataset, steps: Sequence[Step], evaluator: Evaluator) -> dict[str, Any]:
    """The part of meta.json that is known before the first edit."""
    known = {
        "kinds": list(evaluator.columns),
        "measures": {name: dict(measure.description()) for name, measure in evaluator.measures.items()},
        "effective_T": max(step.T for step in steps),
        "cases": len({case.id for step in steps for case in step.test}),
        "data": {
            "source": dataset.source,
            "sha256": dataset.sha256,
            "dropped": dataset.dropped,
            "notes": list(dataset.notes),
        },
        "model_is": {
            "identity": lm.identity,
            "class": type(lm.model).__name__,
            "parameters": sum(p.numel() for p in lm.model.parameters()),
            "dtype": str(lm.dtype).removeprefix("torch."),
            "device": str(lm.device),
        },
        "versions": {name: version(name) for name in LIBRARIES},
        "kedit": version("kedit"),
        "git": git_commit(Path(__file__).parent.parent),
        "machine": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
            **place(),
        },
    }
    if lm.dtype == torch.float32:
        return known
    agreement = noise_floor(lm, all_questions(steps, evaluator))
    log.info("%s agrees with itself on %.2f %% of answer tokens", lm.dtype, 100 * agreement)
    return known | {"noise_floor": agreement}


def place() -> dict[str, str]:
    """Where this process runs: node, Slurm job, the GPUs that it sees."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if task := os.environ.get("SLURM_ARRAY_TASK_ID"):
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}"
    found = {
        "node": os.environ.get("SLURMD_NODENAME") or platform.node(),
        "job": job,
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    }
    return {name: value for name, value in found.items() if value}


def named_files(config: Any) -> dict[str, str]:
    """sha256 of every file that a value of the config names, by the value's dotted name (of a list: and its place)."""
    named = list(dotted(config))
    named += [(f"{name}.{i}", part) for name, value in named if isinstance(value, list) for i, part in enumerate(value)]
    paths = {name: Path(text).expanduser() for name, text in named if isinstance(text, str)}
    return {name: remembered_sha256(path) for name, path in paths.items() if os.path.isfile(path)}


def n_probes(rows: Sequence[dict[str, Any]]) -> int:
    """How many rows are of probes, not of measures."""
    return sum(row["kind"] != BENCHMARK for row in rows)


def costs(steps: Sequence[dict[str, Any]], n_rows: int, load_s: float, total_s: float) -> dict[str, Any]:
    """The part that is known after the last step: seconds by what they went into, rates, peak memory.

    Load and total are of the session that finished the cell; the rest is summed over all its steps.
    """
    edit_s, eval_s, measures_s = (sum(step.get(name, 0.0) for step in steps) for name in SECONDS)
    edits = sum(step.get("edits", len(step["cases"])) for step in steps)
    return {
        "seconds": {
            "load": load_s,
            "fit": sum(step.get("fit_s", 0.0) for step in steps),
            "edit": edit_s,
            "evaluate": eval_s,
            "measures": measures_s,
            "session": total_s,
        },
        "edits_per_s": edits / edit_s if edit_s else None,
        "probes_per_s": n_rows / eval_s if eval_s else None,
        "optimiser_steps": sum(step.get("steps", 0) for step in steps),
        "peak_memory_mb": peak_memory_mb(),
    }


def git_commit(root: Path) -> str | None:
    """The checkout's commit, "+changes" where files differ from it; None outside a checkout."""
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, encoding="utf-8", check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", root, "status", "--porcelain"], capture_output=True, encoding="utf-8", check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")
