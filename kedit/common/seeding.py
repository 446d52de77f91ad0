"""Seeds the global random generators for a while, and then restores their state: an artefact that is built in one run
and read in the next must leave the same random numbers behind."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from transformers import set_seed


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, Python's, numpy's and torch's global generators start from `seed`; afterwards they continue as if nothing
    had been drawn."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            set_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
