"""Editors on the pretend CUDA, in a process of its own: python tests/pretend/editors.py CASE ...

CASE is editor:shape:dtype:devices, e.g. kdpo:llama:bfloat16:2. Prints a JSON object for each: what went wrong, or what
an edit costs (of the second one: the first pays for what is made once).
"""

import json
import sys
import traceback
from copy import deepcopy
from pathlib import Path
from typing import Any

import pretend  # before torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from accelerate import dispatch_model
from conftest import SHAPES
from test_contract import EDITS, FAST, built, check_greedy_generation, edit, nll
from transformers import AutoModelForCausalLM

from kedit import world
from kedit.lm import LM

FAST.update({"statistics.corpus": "world", "statistics.tokens": 2000, "solver.relative": True, "solver.threshold": 0.5})
MAPS = {
    "llama": lambda last: {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": last, "lm_head": last},
    "gpt2": lambda last: {"transformer.wte": 0, "transformer.wpe": 0, "transformer.ln_f": last, "lm_head": 0},
}
LAYERS = {"llama": "model.layers.{}", "gpt2": "transformer.h.{}"}


def tokenizer() -> Any:
    return world.load().text.tokenizer


def model(shape: str, dtype: str, devices: int, tokens: Any) -> LM:
    torch.manual_seed(0)
    config = deepcopy(SHAPES[shape])
    config.initializer_range = 0.08  # large enough to tell prompts apart
    made = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).eval()
    if devices == 1:
        return LM(made.to("cuda:0"), tokens)
    n = config.num_hidden_layers
    split = {LAYERS[shape].format(i): int(i >= n // 2) for i in range(n)}
    return LM(dispatch_model(made, MAPS[shape](1) | split), tokens)


def run(case: str, tokens: Any) -> dict[str, Any]:
    name, shape, dtype, devices = case.split(":")
    lm = model(shape, dtype, int(devices), tokens)
    unedited, weights = nll(lm), {key: value.clone() for key, value in lm.model.state_dict().items()}
    editor = built(name, lm, ["model=local", "model.path=x", "dataset=zsre"])
    lm.cache_lower_layers(editor.edited_parameters(lm), [e.prompt for e in EDITS], [e.target_new for e in EDITS])
    edit(lm, editor, 0)
    if editor.prompt_decides and dtype == "float32":
        check_greedy_generation(lm)
    saved = {key: value.clone() for key, value in lm.state().items()}, editor.state()
    after = nll(lm)
    lm.restore()
    editor.reset()
    assert all(torch.equal(value, weights[key]) for key, value in lm.model.state_dict().items()), "not restored"
    assert nll(lm) == unedited, "answers after restore differ"
    lm.load_state(saved[0])
    editor.load_state(lm, saved[1])
    assert nll(lm) == after, "a loaded state answers otherwise"
    lm.restore()
    editor.reset()
    torch.manual_seed(0)
    with pretend.Recorder() as seen:
        report = editor.edit(lm, EDITS[:1]) or {}
    steps = int(report.get("steps", 0))
    return {"steps": steps, "unedited": unedited, **seen.counts, "where": dict(seen.where.most_common(12))}


def main() -> None:
    tokens = tokenizer()
    for case in sys.argv[1:]:
        try:
            result = run(case, tokens)
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        sys.stdout.write(json.dumps({"case": case, **result}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
