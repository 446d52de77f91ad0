"""python -m kedit.convert: checkpoints of MEND's released code, made here in its layout."""

import json
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import SHAPES
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from kedit.cases import Edit
from kedit.common.errors import InputError
from kedit.editors.hypernetwork import Hypernetwork
from kedit.editors.hypernetwork.networks import Mend, Sum
from kedit.editors.hypernetwork.objective import EditLoss
from kedit.editors.hypernetwork.released import convert
from kedit.editors.training.trainer import Training
from kedit.lm import LM

RANK = 3
EDIT = Edit("Ann was born in", "Rome")
# the released configs' order: gpt2's is not the model's
ORDER = {
    "llama": [f"model.layers.{i}.mlp.{part}_proj.weight" for i in (1, 2) for part in ("gate", "up", "down")],
    "gpt2": [f"transformer.h.{i}.mlp.{part}.weight" for i in (1, 2) for part in ("c_proj", "c_fc")],
    "gptj": [f"transformer.h.{i}.mlp.{part}.weight" for i in (2, 1) for part in ("fc_out", "fc_in")],
}


def checkpoint(model: Any, names: list[str], **more: Any) -> dict[str, Any]:
    """As the released code saves it: one network for each shape (i, o), whose scales and shifts are by mode."""
    torch.manual_seed(1)
    by_shape: dict[tuple[int, int], int] = defaultdict(int)
    for name in names:
        shape = tuple(model.get_parameter(name).shape)
        by_shape[shape if model.config.model_type == "gpt2" else shape[::-1]] += 1  # type: ignore[index]
    state: dict[str, Any] = {"edit_lrs": 1e-2 * torch.randn(len(names))}
    for (i, o), n in by_shape.items():
        of = f"mend.({i}, {o})"
        for side, width in (("u", i), ("v", o)):
            state |= {f"{of}.{side}_mean": torch.randn(width), f"{of}.{side}_s": 50 * torch.rand(width) + 1}
            state[f"{of}.{side}_std"] = (state[f"{of}.{side}_s"] / 99) ** 0.5
        state[f"{of}.k"] = torch.tensor([100.0])
        for layer in (0, 1):
            w, at = i + o, f"{of}.mlp.layers.{layer}"
            state |= {f"{at}.u": torch.randn(w, RANK), f"{at}.v": torch.randn(RANK, w), f"{at}.bias": torch.randn(w)}
            state |= {f"{at}.mode_scale.weight": torch.randn(n, w), f"{at}.mode_shift.weight": torch.randn(n, w)}
    state["model_config"] = model.config
    statistics = {"loss": numpy.float64(0.5), "steps": numpy.int64(3), "curve": defaultdict(list)}
    optimiser = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]).state_dict()
    return {"model": state, "opt": optimiser, "val_stats": statistics, "step": 3, "dtype": torch.float16} | more


def change(state: dict[str, Any], model: LM, names: list[str]) -> dict[str, Tensor]:
    """The released step, from its definition: rows with a gradient, normalised, mapped by mode, summed, added."""
    batch = model.encode([EDIT.prompt], [EDIT.target_new])
    captured = model.capture(batch, [name.removesuffix(".weight") for name in names], "all")
    seen: dict[str, int] = defaultdict(int)
    changes = {}
    for j, name in enumerate(names):
        x, delta = captured[name.removesuffix(".weight")]
        real = (x != 0).any(-1) & (delta != 0).any(-1)
        of = f"mend.({x.shape[1]}, {delta.shape[1]})"
        mode, seen[of] = seen[of], seen[of] + 1
        u = (x[real] - state[f"{of}.u_mean"]) / (state[f"{of}.u_std"] + 1e-7)
        v = (delta[real] - state[f"{of}.v_mean"]) / (state[f"{of}.v_std"] + 1e-7)
        rows = torch.cat([u, v], -1)
        for layer in (0, 1):
            at = f"{of}.mlp.layers.{layer}"
            mapped = (state[f"{at}.u"] @ (state[f"{at}.v"] @ rows.T)).T + state[f"{at}.bias"]
            mapped = mapped * state[f"{at}.mode_scale.weight"][mode] + state[f"{at}.mode_shift.weight"][mode]
            rows = functional.relu(mapped) + rows
        u, v = rows.split([x.shape[1], delta.shape[1]], -1)
        gradient = torch.einsum("bi,bj->ji", u, v)
        changes[name] = state["edit_lrs"][j] * gradient
    return changes


@pytest.mark.parametrize("shape", list(ORDER))
def test_a_converted_checkpoint_edits_as_the_released_code_does(shape: str, lm: LM, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LM(AutoModelForCausalLM.from_config(SHAPES[shape]), lm.text.tokenizer)
    saved = checkpoint(model.model, ORDER[shape])
    torch.save(saved, tmp_path / "mend.pt")
    said = list(convert(tmp_path / "mend.pt", tmp_path / "out", ORDER[shape]))
    assert "editor.network.rank=3 editor.network.blocks=2" in said[-1]
    assert any(ORDER[shape][0].removesuffix(".weight") in line and "edit_lrs[0]" in line for line in said)
    parts = {"loss": EditLoss(), "aggregation": Sum(), "last_layers": 2}
    training = Training(lr=1e-4, edits=1, edits_per_update=1, validate_every=1)
    editor = Hypernetwork(network=Mend(rank=RANK), training=training, trained=str(tmp_path / "out"), **parts)
    wanted = change(saved["model"], model, ORDER[shape])
    before = {name: model.parameter(name).clone() for name in wanted}
    editor.fit(model, ())
    editor.edit(model, [EDIT])
    for name, value in wanted.items():
        found = model.parameter(name) - before[name]
        found = found.T if shape == "gpt2" else found
        assert torch.allclose(found, value, rtol=1e-3, atol=1e-4 * float(value.abs().max())), name
    model.restore()


def without_a_shape(saved: dict[str, Any]) -> dict[str, Any]:
    return {"model": {name: value for name, value in saved["model"].items() if "128, 64" not in name}}


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/kedit-was-here",)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda saved: saved | {"extra": Evil()}, r"holds .*system, which is not loaded: it could run any code"),
        (lambda saved: saved | {"extra": Path("x")}, r"holds .*Path"),
        (lambda saved: {"model": {"weight": torch.ones(1)}}, "has no model_config and edit_lrs"),
        (lambda saved: saved | {"model": saved["model"] | {"edit_lrs": torch.ones(5)}}, r"5 rates, but each MLP has 3"),
        (
            lambda saved: {"model": {k: v for k, v in saved["model"].items() if "128, 64" not in k}},
            r"networks for \(64",
        ),
        (None, "cannot be read as a checkpoint"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused_and_nothing_written(
    made: Callable[[Any], Any] | None, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "mend.pt"
    if made is None:
        file.write_bytes(b"no pickle at all")
    else:
        torch.save(made(checkpoint(AutoModelForCausalLM.from_config(SHAPES["llama"]), ORDER["llama"])), file)
    with pytest.raises(InputError, match=said):
        list(convert(file, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["mend.pt"]
    assert not Path("/tmp/kedit-was-here").exists()


def test_names_are_checked_and_the_models_order_is_the_default(tmp_path: Path) -> None:
    file = tmp_path / "mend.pt"
    model = AutoModelForCausalLM.from_config(SHAPES["llama"])
    torch.save(checkpoint(model, ORDER["llama"]), file)
    with pytest.raises(InputError, match="lm_head is no matrix of an MLP"):
        list(convert(file, tmp_path / "out", ["lm_head.weight"] * 6))
    with pytest.raises(InputError, match="no such file"):
        list(convert(tmp_path / "other.pt", tmp_path / "out"))
    list(convert(file, tmp_path / "named", ORDER["llama"]))
    list(convert(file, tmp_path / "out"))
    one, other = (load_file(tmp_path / name / "network.safetensors") for name in ("named", "out"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    about = json.loads((tmp_path / "out/about.json").read_text())
    assert about["modules"] == [name.removesuffix(".weight") for name in ORDER["llama"]]
    with pytest.raises(InputError, match="exists; give another folder"):
        list(convert(file, tmp_path / "out"))
