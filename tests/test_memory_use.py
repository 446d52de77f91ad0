"""Memory from cell to cell: peaks are each cell's own, two models are never loaded, and running out is one sentence."""

import gc
import weakref
from typing import Any, ClassVar

import pytest
import torch
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf

from kedit.lm.peak_memory import PROCESS, peak_memory_mb, reset_peak_memory
from kedit.run.cell import load_model, one_sentence


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
