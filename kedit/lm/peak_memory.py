"""Peak memory of a cell: of the GPUs together where there are any, else of the process."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

PROCESS = Path("/proc/self")  # on Linux


def reset_peak_memory() -> None:
    """Count peaks anew. Without a GPU that needs Linux: elsewhere a peak is the largest since the process began."""
    for device in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # another system, or a sandbox that does not allow it
        (PROCESS / "clear_refs").write_text("5", encoding="utf-8")


def peak_memory_mb() -> float:
    """MiB at the peak since `reset_peak_memory`: of tensors on all GPUs, each at its own peak, else resident memory."""
    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        return sum(torch.cuda.max_memory_allocated(device) for device in devices) / 2**20
    try:
        lines = (PROCESS / "status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
