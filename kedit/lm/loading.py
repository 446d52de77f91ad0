"""Loading a model with transformers and accelerate, from the hub or from a local directory."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.utils.logging import disable_progress_bar

from kedit.common.cache import digest, remembered_sha256
from kedit.common.errors import InputError, first_line
from kedit.common.options import Amount, Count, DeviceMap, Dtype, Name, PathText
from kedit.lm.model import LM
from kedit.lm.text import Side


def load(
    path: PathText,
    *,
    revision: Name = "main",
    dtype: Dtype = "float32",
    device_map: DeviceMap | dict[str, Any] = "auto",
    offload_folder: PathText | None = None,
    trust_remote_code: bool = False,
    token_budget: Count | None = None,
    padding_side: Side = "right",
    keep_edge_spaces: bool = False,
    keep_mb: Amount = 1024.0,
) -> LM:
    """An LM from a local directory or a hub id; weights are read from safetensors only.

    `device_map` is accelerate's: "auto" puts the model on the GPUs where there are some, else on the CPU. What it
    offloads (to `offload_folder`, where that is the disk) can be scored but not edited. Raises InputError where path,
    revision, tokenizer or dtype are wrong.
    """
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise InputError(f"model.dtype={dtype}: not a dtype of torch; use float32, bfloat16 or float16")
    if not sys.stderr.isatty():
        disable_progress_bar()
    source = _source(path)
    if device_map == "auto" and int(os.environ.get("WORLD_SIZE", 1)) > 1:  # each process has a whole model
        device_map = {"": int(os.environ["LOCAL_RANK"]) if torch.cuda.is_available() else "cpu"}
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    placement = {"dtype": getattr(torch, dtype), "device_map": device_map, "offload_folder": offload_folder}
    tokenizer = _pretrained(AutoTokenizer, source, "tokenizer", options)
    if not len(tokenizer):
        raise InputError(f"{path}: there is no tokenizer; put tokenizer.json beside the model's weights")
    model = _pretrained(AutoModelForCausalLM, source, "model", {**options, **placement, "use_safetensors": True})
    return LM(
        model,
        tokenizer,
        identity=identity(source, model.config),
        token_budget=token_budget,
        padding_side=padding_side,
        keep_edge_spaces=keep_edge_spaces,
        keep_mb=keep_mb,
    )


def _source(path: str) -> str:
    """The directory, or the hub id where there is no such directory."""
    folder = Path(path).expanduser()
    if folder.is_dir() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        if not (folder / "config.json").is_file():
            raise InputError(f"model.path={path}: no model there; give a folder with config.json and safetensors")
        return str(folder)
    return path


def _pretrained(auto: Any, source: str, what: str, options: dict[str, Any]) -> Any:
    try:
        return auto.from_pretrained(source, **options)
    except (OSError, ValueError, SafetensorError) as error:
        first = first_line(error).rstrip(".")
        remedy = "mend the folder" if Path(source).is_dir() else "give a folder, or a hub id that you can reach"
        raise InputError(f"{source}: its {what} cannot be loaded ({first}); {remedy}") from error


def identity_of(path: str, *, revision: str = "main", trust_remote_code: bool = False) -> str:
    """The identity of what `load` would load, without loading it."""
    source = _source(path)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    return identity(source, _pretrained(AutoConfig, source, "config", options))


def identity(source: str, config: PretrainedConfig) -> str:
    """Hub commit, or the hash of the files in a local directory."""
    commit = getattr(config, "_commit_hash", None)
    if commit:
        return f"{source}@{commit}"
    files = sorted(p for p in Path(source).iterdir() if p.suffix in (".json", ".safetensors"))
    return "sha256:" + digest({p.name: remembered_sha256(p) for p in files})
