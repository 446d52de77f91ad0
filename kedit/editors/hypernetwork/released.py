"""Checkpoints of the released MEND code (eric-mitchell/mend, EasyEdit) as folders that editor.trained names.

The file is a pickle whose "model" has the tensors mend.(i, o).mlp.layers.n.u and others, edit_lrs, and a model_config.
Its rates are along the gradient, kedit's are against it.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from kedit.common.cache import sha256
from kedit.common.errors import InputError, first_line
from kedit.editors.training.artefact import ABOUT, WEIGHTS
from kedit.lm.anatomy import inspect_anatomy
from kedit.lm.matrices import matrices_in, widths_of

CONFIGS = [GPT2Config, GPTJConfig, LlamaConfig, MistralConfig, Qwen2Config]
SCALAR: Any = numpy.float64(0).__reduce__()[0]
SAFE: list[Any] = [
    *CONFIGS,
    defaultdict,
    list,
    numpy.dtype,
    *(type(numpy.dtype(name)) for name in ("float64", "float32", "int64")),
    *((SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # numpy's versions differ
]
IN_BLOCK = {"u": "up", "v": "down", "bias": "bias", "mode_scale.weight": "scale", "mode_shift.weight": "shift"}


def convert(file: Path, folder: Path, inner_params: Sequence[str] | None = None) -> Iterator[str]:
    """Write the folder, and say line by line what has become what. Raises InputError, before anything is written, if
    the file is none of such a training, or holds a class that is not in SAFE."""
    if not file.is_file():
        raise InputError(f"{file}: no such file; give a checkpoint that MEND's training has saved")
    if folder.exists():
        raise InputError(f"{folder} exists; give another folder with --out, or delete it")
    saved = _state(file)
    config, rates = saved.get("model_config"), saved.get("edit_lrs")
    if not isinstance(config, PreTrainedConfig) or not isinstance(rates, Tensor):
        raise InputError(f"{file}: has no model_config and edit_lrs; give a checkpoint that MEND's training has saved")
    model = _without_weights(config)
    modules = _modules(file, model, len(rates), inner_params)
    order = [name for name, _ in model.named_modules() if name in modules]
    tensors = dict(_converted(file, saved, modules, order))
    where = {name: i for i, name in enumerate(modules)}
    tensors["rates"] = torch.stack([-rates[where[name]].float() for name in order])
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS)
    about = {"modules": order, "source": file.name, "sha256": sha256(file), "data": {}}
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
    yield from (f"edit_lrs[{where[name]}] -> the rate of {name}: {float(rates[where[name]]):.3g}" for name in order)
    yield from (f"mend.{shape}: normaliser and blocks of {i}x{o} matrices" for shape, (i, o) in _shapes(saved).items())
    ranks = {value.shape[1] for name, value in tensors.items() if name.endswith(".up")}
    blocks = max(int(name.split(".")[3]) for name in tensors if name.endswith(".up")) + 1
    yield (
        f"{folder}: use it with editor=mend editor.trained={folder} editor.network.rank={max(ranks)} "
        f"editor.network.blocks={blocks}"
    )


def _state(file: Path) -> Mapping[str, Any]:
    """What is saved under "model"."""
    try:
        with safe_globals(SAFE):
            unsafe = get_unsafe_globals_in_checkpoint(str(file))
            saved = {} if unsafe else torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, ValueError, EOFError, RuntimeError) as error:
        raise InputError(f"{file}: cannot be read as a checkpoint of torch ({first_line(error)})") from error
    if unsafe:
        raise InputError(
            f"{file}: holds {', '.join(sorted(unsafe))}, which is not loaded: it could run any code; save the "
            "checkpoint without it"
        )
    found = saved.get("model", saved) if isinstance(saved, Mapping) else {}
    return found if isinstance(found, Mapping) else {}


def _without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def _modules(
    file: Path, model: PreTrainedModel, n: int, inner_params: Sequence[str] | None
) -> dict[str, tuple[int, int]]:
    """The edited matrices in the checkpoint's order, with their widths (i, o)."""
    anatomy = inspect_anatomy(model)
    names = [[*matrices_in(model, [anatomy.mlp.format(i)])] for i in range(anatomy.n_layers)]
    if inner_params is None:
        if n % len(names[-1]):
            raise InputError(
                f"{file}: has {n} rates, but each MLP has {len(names[-1])} matrices; name the edited parameters with "
                "--inner-params"
            )
        chosen = [name for layer in names[len(names) - n // len(names[-1]) :] for name in layer]
    else:
        chosen = [name.removesuffix(".weight") for name in inner_params]
        unknown = [name for name in chosen if name not in {one for layer in names for one in layer}]
        if unknown or len(chosen) != n:
            counted = f"{len(chosen)} names, but {file} has {n} rates"
            what = f"{unknown[0]} is no matrix of an MLP" if unknown else counted
            raise InputError(f"--inner-params: {what}; give the names that the checkpoint was trained with")
    return {name: widths_of(model.get_submodule(name)) for name in chosen}


def _shapes(saved: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The shapes with a network, as they are written: "(i, o)"."""
    written = {name.split(".")[1] for name in saved if name.startswith("mend.(")}
    return {shape: tuple(int(part) for part in shape.strip("()").split(",")) for shape in sorted(written)}  # type: ignore[misc]


def _converted(
    file: Path, saved: Mapping[str, Any], modules: Mapping[str, tuple[int, int]], order: Sequence[str]
) -> Iterator[tuple[str, Tensor]]:
    """kedit's names and values, without the rates. A shape's scales and shifts stand in the checkpoint's order; kedit's
    is the model's."""
    shapes, widths = _shapes(saved), list(modules.values())
    if set(shapes.values()) != set(widths):
        raise InputError(
            f"{file}: has networks for {', '.join(shapes) or 'no shape'}, but the edited matrices have the shapes "
            f"{', '.join(map(str, sorted(set(widths))))}; name the edited parameters with --inner-params"
        )
    for shape, (i, o) in shapes.items():
        alike = [name for name in modules if modules[name] == (i, o)]
        rows = [alike.index(name) for name in order if name in alike]
        here, there = f"networks.{i}x{o}", f"mend.{shape}"
        known = {name.removeprefix(f"{there}."): value for name, value in saved.items() if name.startswith(f"{there}.")}
        yield f"{here}.normaliser.n", known["k"].float()
        yield f"{here}.normaliser.mean", torch.cat([known["u_mean"], known["v_mean"]]).float()
        yield f"{here}.normaliser.squares", torch.cat([known["u_s"], known["v_s"]]).float()
        for name, value in known.items():
            if name.startswith("mlp.layers."):
                _, _, block, part = name.split(".", 3)
                value = value[rows] if part.startswith("mode_") else value
                yield f"{here}.blocks.{block}.{IN_BLOCK[part]}", value.float()
