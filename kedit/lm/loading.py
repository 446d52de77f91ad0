"""Loading a model with transformers and accelerate, from the hub or from a local directory."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
)
from transformers.utils.logging import disable_progress_bar, get_logger

from kedit.common.cache import digest, remembered_sha256
from kedit.common.errors import InputError, first_line
from kedit.common.options import Amount, Count, DeviceMap, Dtype, Name, PathText
from kedit.lm.check import check_logits, check_tokenizer, check_weights
from kedit.lm.model import LM
from kedit.lm.text import Side

log = logging.getLogger(__name__)
ADAPTER = "adapter_config.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


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

    `device_map` is accelerate's: "auto" puts the model on the GPUs if there are any, else on the CPU. What it offloads
    (to `offload_folder`, if that is the disk) can be scored but not edited. Raises InputError if path, revision or
    dtype are wrong, if weights are missing, if the tokenizer is not the model's, or if the model's log-probabilities
    are not those that its own class computes (see kedit.lm.check).
    """
    if not sys.stderr.isatty():
        disable_progress_bar()
    source = _source(path)
    if device_map == "auto" and int(os.environ.get("WORLD_SIZE", 1)) > 1:  # each process has a whole model
        device_map = {"": int(os.environ["LOCAL_RANK"]) if torch.cuda.is_available() else "cpu"}
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    placement = {"dtype": _dtype(dtype), "device_map": device_map, "offload_folder": offload_folder}
    with library_warnings(source):
        config = _config(source, options)
        tokenizer = _pretrained(AutoTokenizer, source, "tokenizer", options)
        how = {**options, **placement, **WEIGHTS, "config": config}
        model, info = _pretrained(AutoModelForCausalLM, source, "model", how)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise _no_model(source, "a peft adapter is loaded with it")
    check_weights(model, source, info)
    lm = LM(
        model,
        tokenizer,
        identity=identity(source, model.config),
        token_budget=token_budget,
        padding_side=padding_side,
        keep_edge_spaces=keep_edge_spaces,
        keep_mb=keep_mb,
    )
    check_tokenizer(lm.text, source)
    check_logits(lm, source)
    return lm


# what is only reported, and refused by check_weights
WEIGHTS = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}


def _dtype(name: str) -> torch.dtype:
    if name not in get_args(Dtype):
        raise InputError(
            f"model.dtype={name}: not a dtype that weights can have; use one of {', '.join(get_args(Dtype))}"
        )
    return getattr(torch, name)


def _source(path: str) -> str:
    """The directory, or the hub id if there is no such directory."""
    folder = Path(path).expanduser()
    if not folder.is_dir() and not path.startswith((".", "/", "~")) and path.count("/") <= 1 and path:
        return path
    if (folder / ADAPTER).is_file():
        raise _no_model(f"model.path={path}", f"there is a peft adapter{_base_of(folder)}")
    if not (folder / "config.json").is_file():
        raise InputError(f"model.path={path}: no model there; give a folder with config.json and safetensors")
    return str(folder)


def _no_model(source: str, found: str) -> InputError:
    return InputError(
        f"{source}: {found}, not a model; merge it into its base model (merge_and_unload, then save_pretrained) and "
        "give the merged model"
    )


def _base_of(folder: Path) -> str:
    """The base model that an adapter's config names."""
    try:
        base = json.loads((folder / ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    return f" of {base}" if base else ""


def _config(source: str, options: dict[str, Any]) -> PretrainedConfig:
    """The model's config; a pad id that has no embedding is left out of it, because nothing needs it."""
    config = _pretrained(AutoConfig, source, "config", options)
    _check_kind(source, config)
    if (Path(source) / "generation_config.json").is_file():  # transformers would go on without a broken one
        ends = _pretrained(GenerationConfig, source, "generation config", {}).eos_token_id
        if not all(isinstance(end, int) for end in (ends if isinstance(ends, list) else [ends or 0])):
            raise InputError(
                f"{source}: eos_token_id={ends!r} in generation_config.json is no token id; give an id, or a list"
            )
    text = config.get_text_config(decoder=True)
    pad = getattr(text, "pad_token_id", None)
    if pad is not None and not 0 <= pad < text.vocab_size:
        text.pad_token_id = None
    return config


def _check_kind(source: str, config: PretrainedConfig) -> None:
    """Raises InputError if the config is not that of a causal language model with full-precision weights."""
    kind = getattr(config, "model_type", "") or type(config).__name__
    if config.is_encoder_decoder:
        raise InputError(f"{source}: {kind} is an encoder-decoder model; give a causal (decoder-only) language model")
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not known and "AutoModelForCausalLM" not in (getattr(config, "auto_map", None) or {}):
        what = "a multimodal model" if getattr(config, "vision_config", None) else "not a causal language model"
        raise InputError(f"{source}: {kind} is {what}; give a causal language model, which reads and writes text")
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else type(quantised).__name__
        raise InputError(
            f"{source}: its weights are quantised ({method or 'bitsandbytes'}), and kedit reads and edits weights in "
            "full precision; give the model that it was quantised from"
        )


def _pretrained(auto: Any, source: str, what: str, options: dict[str, Any]) -> Any:
    """`auto.from_pretrained`. Whatever transformers raises for a file that it cannot read becomes an InputError."""
    try:
        return auto.from_pretrained(source, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise InputError(
            f"{source}: its {what} cannot be loaded ({_reason(error)}); {_remedy(source, what, error)}"
        ) from error


def _reason(error: Exception) -> str:
    """What a library's error says, with its type if the text alone says little (KeyError: 'weight_map')."""
    text = first_line(error).rstrip(".")
    return text if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {text}"


def _remedy(source: str, what: str, error: Exception) -> str:
    folder = Path(source)
    pickled = [file.name for pattern in PICKLED for file in folder.glob(pattern)] if folder.is_dir() else []
    if "trust_remote_code" in str(error):
        return (
            "it needs code that comes with the model; read that code, then allow it with model.trust_remote_code=true"
        )
    if pickled and not any(folder.glob("*.safetensors")):
        return (
            f"{pickled[0]} is a pickle, which could run code; convert it to safetensors in a process that you trust: "
            "AutoModelForCausalLM.from_pretrained(folder, use_safetensors=False).save_pretrained(new_folder)"
        )
    if isinstance(error, ImportError):
        return "install the package that it names"
    if what == "tokenizer" and folder.is_dir() and not (folder / "tokenizer.json").is_file():
        return "put the model's tokenizer.json beside its weights"
    if folder.is_dir():
        return f"repair the folder, or download it again{' (or change model.device_map)' * (what == 'model')}"
    return "give a folder, or a hub id that you can reach and that has safetensors"


@contextmanager
def library_warnings(source: str) -> Iterator[None]:
    """What transformers warns of inside is logged by kedit, each warning in one line; its report of missing and
    unexpected tensors is left to check_weights."""
    library = get_logger()
    own, forward = list(library.handlers), _Forward(source)
    library.handlers = [forward]
    try:
        yield
    finally:
        library.handlers = own


class _Forward(logging.Handler):
    def __init__(self, source: str):
        super().__init__(logging.WARNING)
        self.source, self.seen = source, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        warning = " ".join(record.getMessage().split())
        if "LOAD REPORT" not in warning and warning not in self.seen:
            log.warning("%s: transformers warns: %s", self.source, warning)
        self.seen.add(warning)


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
