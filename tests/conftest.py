"""Shared by all tests: one thread, the world model, small models of each shape."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import pytest
import torch
from forked import Forked
from omegaconf import DictConfig, OmegaConf
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

import kedit.run.main  # registers what its configs interpolate
from kedit import world
from kedit.lm import LM
from kedit.lm.sentence_encoder import MINILM

torch.set_num_threads(1)

TESTS = Path(__file__).parent
SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 1024, "bos_token_id": 0, "eos_token_id": 0}
GPT = {"n_layer": 3, "n_head": 4, "n_embd": 64, "n_positions": 256, "vocab_size": 1024}
LLAMA = SIZES | {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2}
SHAPES = {
    "llama": LlamaConfig(**LLAMA),
    "qwen2": Qwen2Config(**LLAMA),
    "mistral": MistralConfig(**LLAMA, sliding_window=8),
    "gemma": GemmaConfig(**LLAMA, head_dim=16),
    "gpt2": GPT2Config(**GPT, bos_token_id=0, eos_token_id=0),
    "gptj": GPTJConfig(**GPT, rotary_dim=8, bos_token_id=0, eos_token_id=0),
}


# of an in-context editor's config: as little to learn as can be, with what is at hand
QUICK = {
    "memory.encoder": MINILM,
    "prompt.encoder": MINILM,
    "prompt.k": 2,
    "network.train_encoder": False,
    "training.edits": 320,
    "training.edits_per_update": 16,
    "training.validate_every": 160,
    "training.validation_edits": 4,
    "more_training": None,
    "filter.model": MINILM,
    "filter.threshold": 0.0,
    "filter.pairs.mined": 0,
    "filter.training.max_steps": 2,
    "scope.model": MINILM,
    "scope.threshold": 0.0,
    "scope.pairs.mined": 0,
    "scope.training.max_steps": 1,
    "counterfactual.tuner.max_steps": 1,
    "alignment.tuner.max_steps": 2,
    "alignment.tuner.gradient_accumulation": 1,
    "alignment.conversations.encoder": None,
    "alignment.conversations.rounds": 1,
}


def quick(editor: DictConfig, more: Mapping[str, Any] = MappingProxyType({})) -> DictConfig:
    """An editor's config with these settings, as far as it has them."""
    for key, value in {**QUICK, **more}.items():
        if OmegaConf.select(editor, key) is not None:
            OmegaConf.update(editor, key, value)
    return editor


@pytest.fixture(scope="session")
def _world_lm() -> LM:
    return world.load()


@pytest.fixture
def lm(_world_lm: LM) -> Iterator[LM]:
    """The world model, restored afterwards."""
    yield _world_lm
    _world_lm.restore()


@pytest.fixture(params=list(SHAPES))
def shaped(request: pytest.FixtureRequest, _world_lm: LM) -> LM:
    """A random model of each architecture, with the world's tokenizer."""
    torch.manual_seed(0)
    return LM(AutoModelForCausalLM.from_config(deepcopy(SHAPES[request.param])), _world_lm.text.tokenizer)


@pytest.fixture
def small_dir(tmp_path: Path, _world_lm: LM) -> Path:
    """A random Llama as a transformers directory."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(deepcopy(SHAPES["llama"])).save_pretrained(tmp_path / "small")
    _world_lm.text.tokenizer.save_pretrained(tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The full benchmark files; tests that need them are skipped where KEDIT_TEST_DATA is not set."""
    folder = os.environ.get("KEDIT_TEST_DATA")
    if not folder:
        pytest.skip("KEDIT_TEST_DATA is not set: no full benchmark files")
    return Path(folder)


Done = subprocess.CompletedProcess[str]


def run_kedit(folder: Path, *arguments: object, **environment: str) -> Done:
    """The command line, in `folder`, with its outputs in `folder`/runs; in a forked process (see forked.py), unless
    its environment has something that only a new interpreter reads."""
    if not any(str(argument).startswith("tracker=") for argument in arguments):
        arguments = (*arguments, "tracker=none")
    env = {**os.environ, "KEDIT_RUNS": str(folder / "runs"), "COLUMNS": "120", **environment}
    command = [*map(str, arguments)]
    if environment.keys() & {"PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL"}:
        real = [sys.executable, "-m", "kedit.run", *command]
        return subprocess.run(real, env=env, cwd=folder, capture_output=True, encoding="utf-8", errors="replace")
    with TemporaryDirectory() as says:
        process = Forked("kedit.run", command, env=env, cwd=folder, says=Path(says) / "says")
        out, err = process.communicate()
    return subprocess.CompletedProcess(command, process.wait(), out, err)


@pytest.fixture
def kedit(tmp_path: Path) -> Callable[..., Done]:
    """The command line, in an empty folder."""
    return lambda *arguments, **environment: run_kedit(tmp_path, *arguments, **environment)


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The same in this process, of a command that must be refused: what it says, and its exit status is 1."""

    def refused(*arguments: object) -> str:
        from kedit.run.main import main

        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("KEDIT_RUNS", str(tmp_path / "runs"))
        tracker = [] if any(str(argument).startswith("tracker") for argument in arguments) else ["tracker=none"]
        monkeypatch.setattr(sys, "argv", ["kedit", *map(str, arguments), *tracker])
        with pytest.raises(SystemExit) as caught:
            main()
        assert isinstance(caught.value.code, str)
        return caught.value.code

    return refused
