"""A pretend CUDA in host memory (pretend_cuda.cpp). To be imported before torch: torch.cuda then has devices, and what
would cost time on a real GPU is counted.

PRETEND_LIB names the library that build.py makes; PRETEND_DEVICES (1 or 2) is the number of devices, if
CUDA_VISIBLE_DEVICES does not say which there are.
"""

import collections
import contextlib
import ctypes
import os
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

assert "torch" not in sys.modules, "its CUDA hooks must be there before torch is imported"
lib = ctypes.CDLL(os.environ["PRETEND_LIB"], mode=ctypes.RTLD_GLOBAL)
lib.pretend_init()

import torch  # noqa: E402
import torch._dynamo  # noqa: E402 ( before torch.cuda looks compiled)

for counter in ("pretend_used", "pretend_peak"):
    getattr(lib, counter).restype = ctypes.c_int64
lib.pretend_limit.argtypes = [ctypes.c_int, ctypes.c_int64]
MOST = 2  # devices that the library has
TOTAL = 80 * 2**30
KEDIT = str(Path(__file__).parents[2] / "kedit") + os.sep


def count() -> int:
    """As CUDA before its first use, this follows the environment."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return int(os.environ["PRETEND_DEVICES"])
    return len([name for name in visible.split(",") if name])


def index(device: Any = None) -> int:
    if device is None:
        return lib.pretend_current()
    device = torch.device(device) if isinstance(device, str) else device
    if isinstance(device, torch.device):
        return lib.pretend_current() if device.index is None else device.index
    return int(device)


class Properties:
    name, major, minor, total_memory, multi_processor_count = "Pretend GPU", 8, 0, TOTAL, 108
    is_integrated, warp_size, gcnArchName = False, 32, ""
    regs_per_multiprocessor, max_threads_per_multi_processor = 65536, 2048


def seed_all(seed: int) -> None:
    for i in range(MOST):
        torch.ops.pretend.rng_seed(i, seed)


def set_states(states: list) -> None:
    for i, state in enumerate(states):
        torch.ops.pretend.rng_set(i, state)


PRETENDED = {
    "is_available": lambda: count() > 0,
    "device_count": count,
    "_lazy_init": lambda: None,
    "is_initialized": lambda: count() > 0,
    "init": lambda: None,
    "current_device": lambda: lib.pretend_current(),
    "set_device": lambda device: lib.pretend_set(index(device)),
    "get_device_properties": lambda device=None: Properties,
    "get_device_name": lambda device=None: Properties.name,
    "get_device_capability": lambda device=None: (8, 0),
    "mem_get_info": lambda device=None: (TOTAL - lib.pretend_used(index(device)), TOTAL),
    "synchronize": lambda device=None: None,
    "empty_cache": lambda: None,
    "memory_allocated": lambda device=None: lib.pretend_used(index(device)),
    "max_memory_allocated": lambda device=None: lib.pretend_peak(index(device)),
    "memory_reserved": lambda device=None: lib.pretend_used(index(device)),
    "max_memory_reserved": lambda device=None: lib.pretend_peak(index(device)),
    "reset_peak_memory_stats": lambda device=None: lib.pretend_reset_peak(index(device)),
    "is_bf16_supported": lambda including_emulation=True: True,
    "manual_seed": lambda seed: torch.ops.pretend.rng_seed(index(), seed),
    "manual_seed_all": seed_all,
    "get_rng_state": lambda device=None: torch.ops.pretend.rng_get(index(device)),
    "set_rng_state": lambda state, device=None: torch.ops.pretend.rng_set(index(device), state),
    "get_rng_state_all": lambda: [torch.ops.pretend.rng_get(i) for i in range(min(count(), MOST))],
    "set_rng_state_all": set_states,
    "is_current_stream_capturing": lambda: False,
    "current_stream": lambda device=None: types.SimpleNamespace(synchronize=lambda: None),
    "_is_compiled": lambda: True,
    "_is_in_bad_fork": lambda: False,
    "_initialized": True,
}
for name, value in PRETENDED.items():
    setattr(torch.cuda, name, value)
torch.version.cuda = "12.8"


def clone_storage(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """A torch without CUDA makes storages only on the CPU."""
    return torch.empty(storage.nbytes(), dtype=torch.uint8, device=storage.device).untyped_storage().copy_(storage)


torch.UntypedStorage.clone = clone_storage  # type: ignore[method-assign]


class device(contextlib.ContextDecorator):
    """torch.cuda.device"""

    def __init__(self, given: Any):
        self.index = index(given)

    def __enter__(self) -> None:
        self.before = lib.pretend_current()
        lib.pretend_set(self.index)

    def __exit__(self, *_: object) -> None:
        lib.pretend_set(self.before)


torch.cuda.device = device  # type: ignore[misc,assignment]


class Recorder(contextlib.AbstractContextManager):
    """Counts by kind: launch, sync (the host waits for the device), h2d and d2h (copies), d2d (between devices).

    `where` says which line of kedit caused one that is no launch.
    """

    Event: ClassVar = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64)

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.where: collections.Counter[str] = collections.Counter()

    def __enter__(self) -> "Recorder":
        self._callback = self.Event(self._seen)
        lib.pretend_events(self._callback)
        return self

    def __exit__(self, *_: object) -> None:
        lib.pretend_events(self.Event(0))

    def _seen(self, kind: bytes, what: bytes, size: int) -> None:
        self.counts[kind.decode()] += 1
        if kind != b"launch":
            self.where[f"{kind.decode()} {what.decode()} {line_of_kedit()}"] += 1


def line_of_kedit() -> str:
    try:
        frame = sys._getframe(2)
    except ValueError:
        return "in autograd's own thread"
    while frame is not None:
        if frame.f_code.co_filename.startswith(KEDIT):
            return f"{frame.f_code.co_filename.removeprefix(KEDIT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside kedit"
