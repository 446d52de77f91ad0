"""Gated editors by the command: what a killed run continues with, and what python -m kedit.memory says of its state."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import run_kedit
from killed_runs import Run, assert_same, cell, finish
from safetensors.torch import load_file

from kedit.run.memory_command import main

LITTLE = {
    "grace": ["editor.steps=5"],
    "melo": ["editor.steps=5"],
    "wise": ["editor.steps=5", "editor.sampling.tokens=[2]", "editor.save_every=2", "editor.merge_every=4"],
    "serac": [
        "editor.scope.training.max_steps=1",
        "editor.scope.pairs.mined=0",
        "editor.scope.threshold=0.2",
        "editor.counterfactual.tuner.max_steps=1",
    ],
}
