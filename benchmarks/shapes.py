"""The models that are measured and what they are asked: records of ZsRE, in tokens of a usual length."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from kedit import world
from kedit.cases import Case, Edit
from kedit.data import knowedit, load
from kedit.lm import LM

SMALL = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 16, "num_attention_heads": 8}
SHAPES: dict[str, PretrainedConfig | None] = {
    "llama 16x512, 8k": LlamaConfig(**SMALL, vocab_size=8192),
    "llama 16x512, 128k": LlamaConfig(**SMALL, vocab_size=128_256),
    "gpt2 12x768": GPT2Config(),
    "world": None,
}
BIG: dict[str, PretrainedConfig | None] = {
    "llama2-7b": LlamaConfig(),
    "llama3-8b": LlamaConfig(vocab_size=128_256, intermediate_size=14_336, num_key_value_heads=8),
    "qwen2.5-7b": Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_window_layers=28,
    ),
}


@dataclass(frozen=True)
class Material:
    """What a shape is asked."""

    edits: Sequence[Edit]
    questions: Sequence[tuple[str, str]]  # distinct (prompt, answer)
    tokenizer: PreTrainedTokenizerBase

    @property
    def prompts(self) -> list[str]:
        return [edit.prompt for edit in self.edits]


def cases_of(config: PretrainedConfig | None, path: str, n: int) -> Sequence[Case]:
    """Whole cases, to be edited and asked."""
    return world.cases(edits=n, limit=n).cases if config is None else load(knowedit.parse, path=path).cases[:n]


def material(config: PretrainedConfig | None, path: str, rows: int) -> Material:
    return of_world(rows) if config is None else zsre(path, rows)


def zsre(path: str, rows: int) -> Material:
    """The first `rows` records of a file in KnowEdit's form; the tokenizer has learnt from those behind them."""
    cases = load(knowedit.parse, path=path).cases
    return Material(*asked(cases[:rows]), bpe([f"{p} {a}" for p, a in asked(cases[rows:] or cases)[1]]))


def of_world(rows: int) -> Material:
    return Material(*asked(world.cases(seed=0).cases[:rows]), world.load().text.tokenizer)


def asked(cases: Sequence[Case]) -> tuple[list[Edit], list[tuple[str, str]]]:
    questions = [(probe.prompt, probe.answers[0]) for case in cases for probe in case.probes if probe.answers]
    return [case.edits[0] for case in cases], list(dict.fromkeys(questions))


def bpe(texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """Byte-level, of at most 8 192 tokens: every shape has room for it."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=8192, special_tokens=["<s>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="<s>")


def build(config: PretrainedConfig | None, tokenizer: PreTrainedTokenizerBase, device: str, dtype: torch.dtype) -> LM:
    """Random weights of this shape; the world's model is what it is."""
    if config is None:
        return world.load()
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(deepcopy(config), dtype=dtype)
    return LM(model, tokenizer)
