"""Tensors that a file gives in the place of random draws: to repeat somebody else's edits."""

from functools import cache
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kedit.common.errors import InputError


def given(option: str, path: str | None, name: str, index: int) -> Tensor | None:
    """Entry `index` of the tensor `name` in the safetensors file `path`, the value of `option`; None without a file."""
    if path is None:
        return None
    tensors = _read(option, str(Path(path).expanduser()))
    if name not in tensors or index >= len(tensors[name]):
        held = {key: list(value.shape) for key, value in tensors.items()}
        raise InputError(f"{option}={path}: holds {held}, but entry {index} of {name!r} is needed; add it, or drop it")
    return tensors[name][index]


def check(option: str, path: str | None) -> None:
    """Raises InputError if the file cannot be read."""
    if path is not None:
        _read(option, str(Path(path).expanduser()))


@cache
def _read(option: str, path: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{option}={path}: no safetensors file there; give one, or null to draw at random") from error
