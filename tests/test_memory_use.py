"""Memory from cell to cell: peaks are each cell's own, two models are never loaded, and running out is one sentence."""

import gc
import weakref
from typing import Any, ClassVar

import pytest
import torch
from conftest import LLAMA
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, LlamaConfig

from kedit.cases import Edit
from kedit.editors.finetune.per_edit import FineTune
from kedit.lm import LM
from kedit.lm.peak_memory import PROCESS, peak_memory_mb, reset_peak_memory
from kedit.losses.cross_entropy import CrossEntropy
from kedit.run.cell import load_model, one_sentence
from kedit.run.memory_fit import needs


class Recorded:
    """A model of a cell; `others` counts the models that were still there when each was made."""

    alive: ClassVar["weakref.WeakSet[Recorded]"] = weakref.WeakSet()
    others: ClassVar[list[int]] = []

    def __init__(self, name: str):
        self.others.append(len(self.alive))
        self.itself = self  # a circle, as a model's hooks make
        self.alive.add(self)

    def restore(self) -> None:
        pass


def config(name: str) -> Any:
    return OmegaConf.create({"threads": 1, "model": {"_target_": f"{__name__}.Recorded", "name": name}})


def test_the_last_cells_model_is_gone_before_the_next_one_loads() -> None:
    gc.disable()
    try:
        first = load_model(config("one"))
        assert load_model(config("one")) is first
        del first
        load_model(config("two"))
        load_model(config("one"))
    finally:
        gc.enable()
    assert Recorded.others == [0, 0, 0]


@pytest.mark.skipif(not (PROCESS / "clear_refs").exists(), reason="peaks are reset on Linux")
def test_a_peak_is_the_cells_own() -> None:
    reset_peak_memory()
    held = torch.ones(64, 2**20)
    peak = peak_memory_mb()
    del held
    reset_peak_memory()
    assert peak_memory_mb() < peak - 128


def test_running_out_of_memory_in_an_edit_is_one_sentence() -> None:
    expected = pytest.raises(CompactHydraException, match=r"^out of memory in one edit.*model.dtype=bfloat16")
    with expected as caught, one_sentence():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nsee the manual")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not (PROCESS / "clear_refs").exists(), reason="peaks are reset on Linux")
def test_what_an_edit_needs_is_told_from_shapes(lm: LM) -> None:
    """In float32, of a matrix that is large beside everything else."""
    config = LlamaConfig(**{**LLAMA, "hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 2})
    with torch.device("meta"):
        large = AutoModelForCausalLM.from_config(config)
    large = LM(large.to_empty(device="cpu").float().eval(), lm.text.tokenizer)
    with torch.no_grad():
        for parameter in large.model.parameters():
            parameter.fill_(1e-3)
    editor = FineTune(loss=CrossEntropy(), lr=1e-4, layers=[1], steps=3, parameters="mlp_out.weight")
    told = needs(config, "float32", editor)
    assert told.weights == sum(p.numel() * 4 for p in large.model.parameters())
    torch.zeros(1 << 24)  # what allocators keep is there before
    gc.collect()
    reset_peak_memory()
    before = peak_memory_mb()
    editor.edit(large, [Edit("Who works for Crown Media?", "Lucy Kelden")])
    measured = (peak_memory_mb() - before) * 2**20
    assert 0.6 * told.editing <= measured <= 1.25 * told.editing
