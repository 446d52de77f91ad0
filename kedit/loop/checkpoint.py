"""The state of a run after a committed step: the tensors that the LM tracks, and the editor's own."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kedit.common.errors import InputError
from kedit.common.text_files import read_text, write_text

if TYPE_CHECKING:
    from torch import Tensor

    from kedit.editors import Editor
    from kedit.lm import LM

log = logging.getLogger(__name__)

COMMIT = "commit.json"


def save_checkpoint(folder: Path, lm: "LM", editor: "Editor") -> None:
    """Write the state of model and editor into an empty folder."""
    from safetensors.torch import save_file

    tensors, texts = _parts(editor.state())
    save_file(_contiguous(lm.state()), folder / "model.safetensors")
    save_file(_contiguous(tensors), folder / "editor.safetensors")
    write_text(folder / "editor.json", json.dumps(texts))


def load_checkpoint(home: Path, lm: "LM", editor: "Editor") -> int:
    """Load the state of the last commit below `home` into model and editor. Returns its step; -1 without a commit."""
    from safetensors.torch import load_file

    step = committed_step(home)
    if step > 0:
        with _undamaged(home / str(step)) as folder:
            model = load_file(folder / "model.safetensors", device=str(lm.device))
        state = editor_state(home, step, str(lm.device))
        lm.load_state(model)
        editor.load_state(lm, state)
        log.info("continuing after step %d", step)
    return step


def committed_step(home: Path) -> int:
    """The step of the last commit below `home`; -1 without one."""
    return int(json.loads(read_text(home / COMMIT) or '{"step": -1}')["step"])


def editor_state(home: Path, step: int, device: str = "cpu") -> dict[str, "Tensor | str"]:
    """What the editor's `state()` was at this commit."""
    from safetensors.torch import load_file

    with _undamaged(home / str(step)) as folder:
        return load_file(folder / "editor.safetensors", device=device) | json.loads(
            (folder / "editor.json").read_text(encoding="utf-8")
        )


@contextmanager
def _undamaged(folder: Path) -> Iterator[Path]:
    from safetensors import SafetensorError

    try:
        yield folder
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder} is damaged ({error}); remove {folder.parents[1]} to start over") from error


def _contiguous(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """As safetensors needs them."""
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _parts(state: Mapping[str, "Tensor | str"]) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    tensors = {name: value for name, value in state.items() if not isinstance(value, str)}
    return tensors, {name: value for name, value in state.items() if isinstance(value, str)}
