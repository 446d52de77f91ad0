"""The state of a run after a committed step: the tensors that the LM tracks, and the editor's own.

`state/commit.json` says which step that is, and what identifies every file that it rests on (kedit.results.integrity).
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedit.common.text_files import write_text
from kedit.results.cell_files import COMMIT, ROWS, STATE, STEPS
from kedit.results.integrity import DamagedFile, Fingerprint, check_files, compare, fingerprint, read_json, read_record

if TYPE_CHECKING:
    from torch import Tensor

    from kedit.editors import Editor
    from kedit.lm import LM

log = logging.getLogger(__name__)


def save_checkpoint(cell: Path, step: int, lm: "LM", editor: "Editor") -> dict[str, Fingerprint]:
    """Write the state of model and editor into the new folder state/<step>. Returns what identifies its files."""
    from safetensors.torch import save_file

    folder = cell / STATE / str(step)
    folder.mkdir(parents=True)
    tensors, texts = _parts(editor.state())
    save_file(_contiguous(lm.state()), folder / "model.safetensors")
    save_file(_contiguous(tensors), folder / "editor.safetensors")
    write_text(folder / "editor.json", json.dumps(texts))
    return {str(file.relative_to(cell)): fingerprint(file) for file in sorted(folder.iterdir())}


def intact_commit(cell: Path) -> dict[str, Any]:
    """The record of the last commit; empty without one. Raises DamagedFile if a file (the state apart) is not as it was
    committed."""
    record = read_record(cell, COMMIT)
    if record:
        files = record.get("files")
        if not isinstance(files, dict) or not {ROWS, STEPS} <= files.keys():
            raise DamagedFile(cell, COMMIT, "it does not say what was committed")
        check_files(cell)
    return record


def load_checkpoint(cell: Path, lm: "LM", editor: "Editor") -> int:
    """Load the state of the last commit into model and editor. Returns its step; -1 without a commit."""
    step = committed_step(cell)
    if step > 0:
        model = _tensors(cell, f"{STATE}/{step}/model.safetensors", str(lm.device))
        state = editor_state(cell, step, str(lm.device))
        lm.load_state(model)
        editor.load_state(lm, state)
        log.info("continuing after step %d", step)
    return step


def committed_step(cell: Path) -> int:
    """The step of the last commit; -1 without one."""
    step = read_record(cell, COMMIT).get("step", -1)
    if not isinstance(step, int):
        raise DamagedFile(cell, COMMIT, f"its step is {step!r}")
    return step


def editor_state(cell: Path, step: int, device: str = "cpu") -> dict[str, "Tensor | str"]:
    """What the editor's `state()` was at this commit."""
    texts = read_json(cell, f"{STATE}/{step}/editor.json")
    return _tensors(cell, f"{STATE}/{step}/editor.safetensors", device) | texts


def model_state(cell: Path, step: int) -> dict[str, "Tensor | str"]:
    """What the LM kept of its edits at this commit."""
    return dict(_tensors(cell, f"{STATE}/{step}/model.safetensors", "cpu"))


def _tensors(cell: Path, name: str, device: str) -> dict[str, "Tensor"]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    known = read_record(cell, COMMIT).get("files", {})
    compare(cell, {name: known[name]} if name in known else {}, growing=False)
    try:
        return load_file(cell / name, device=device)
    except (FileNotFoundError, SafetensorError) as error:
        raise DamagedFile(cell, name, str(error)) from error


def _contiguous(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Tensors as safetensors needs them: each in memory of its own."""
    found, seen = {}, set()
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous()
        place = (own.device, own.untyped_storage().data_ptr())
        found[name] = own.clone() if place in seen else own
        seen.add(place)
    return found


def _parts(state: Mapping[str, "Tensor | str"]) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    tensors = {name: value for name, value in state.items() if not isinstance(value, str)}
    return tensors, {name: value for name, value in state.items() if isinstance(value, str)}
