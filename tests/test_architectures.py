"""Tiny models of many architectures: scores, edits, generation and cached layers are the model's own, or it is refused.

Each has two layers, random weights (norms and biases included) and the world's tokenizer.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from test_columns import made, plainly
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from kedit import world
from kedit.cases import Edit
from kedit.common.errors import InputError
from kedit.editors.finetune.per_edit import FineTune
from kedit.editors.locate import Locate
from kedit.editors.locate.context_templates import Sampling
from kedit.editors.locate.fact_rows import KeyReader
from kedit.editors.locate.solvers import RankOne
from kedit.editors.locate.subject_forward import SubjectForward
from kedit.editors.locate.values import Values
from kedit.lm import LM, load
from kedit.lm.check import check_logits
from kedit.losses.cross_entropy import CrossEntropy

ENDS = {"vocab_size": 1024, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LLAMA = ENDS | {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
HEADS, WINDOW = {"head_dim": 8}, {"sliding_window": 8}
GPT = ENDS | {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 128}
FALCON = ENDS | {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LOCAL = {"attention_types": [[["global", "local"], 1]], "window_size": 8}

# model_type, config; the numbers that a wrapper multiplies or divides by are not 1
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA),
    "llama, tied": ("llama", LLAMA | {"tie_word_embeddings": True, "attention_bias": True}),
    "mistral": ("mistral", LLAMA | WINDOW),
    "qwen2": ("qwen2", LLAMA),
    "qwen3": ("qwen3", LLAMA | HEADS),
    "gemma": ("gemma", LLAMA | HEADS),
    "gemma2": ("gemma2", LLAMA | HEADS | WINDOW | {"final_logit_softcapping": 0.5}),
    "gemma3": ("gemma3_text", LLAMA | HEADS | WINDOW),
    "gemma3, multimodal": (
        "gemma3",
        {
            "text_config": LLAMA | HEADS | WINDOW,
            "vision_config": VISION | {"image_size": 28, "patch_size": 14},
            "mm_tokens_per_image": 4,
            "image_token_index": 1000,
            "boi_token_index": 1001,
            "eoi_token_index": 1002,
        },
    ),
    "phi": ("phi", LLAMA),
    "phi3": ("phi3", LLAMA),
    "gpt2": ("gpt2", GPT),
    "gptj": ("gptj", GPT | {"rotary_dim": 4}),
    "gpt_neo": ("gpt_neo", LLAMA | LOCAL | {"num_layers": 2, "num_heads": 4}),
    "gpt_neox": ("gpt_neox", LLAMA),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "falcon": ("falcon", FALCON),
    "falcon, new decoder": ("falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, alibi": ("falcon", FALCON | {"alibi": True}),
    "bloom": ("bloom", ENDS | {"n_layer": 2, "n_head": 4, "hidden_size": 32}),
    "mpt": ("mpt", ENDS | {"n_layers": 2, "n_heads": 4, "d_model": 32, "max_seq_len": 128}),
    "olmo": ("olmo", LLAMA),
    "olmo2": ("olmo2", LLAMA),
    "stablelm": ("stablelm", LLAMA),
    "starcoder2": ("starcoder2", LLAMA),
    "cohere": ("cohere", LLAMA | {"logit_scale": 0.25}),
    "cohere2": ("cohere2", LLAMA | HEADS | WINDOW | {"logit_scale": 4.0}),
    "granite": (
        "granite",
        LLAMA | {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.2},
    ),
    "nemotron": ("nemotron", LLAMA),
    "glm4": ("glm4", LLAMA | HEADS),
    "smollm3": ("smollm3", LLAMA),
    "modernbert, decoder": (  # a matrix, an activation and a norm between body and head
        "modernbert-decoder",
        LLAMA | {"global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 0, "sep_token_id": 0},
    ),
}
MOE = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
OPT = FALCON | {"ffn_dim": 64, "max_position_embeddings": 128, "word_embed_proj_dim": 32}
DEEPSEEK = {"n_routed_experts": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "opt": ("opt", OPT, r"its parts are self_attn, fc1, fc2"),
    "qwen2_moe": ("qwen2_moe", LLAMA | MOE | {"num_experts": 4}, "layer 0 is a mixture of experts"),
    "qwen2_moe, dense at first": (
        "qwen2_moe",
        LLAMA | MOE | {"num_experts": 4, "mlp_only_layers": [0]},
        "layer 1 is a mixture of experts",
    ),
    "mixtral": ("mixtral", LLAMA | {"num_local_experts": 4}, "layer 0 is a mixture of experts"),
    "gpt_oss": ("gpt_oss", LLAMA | HEADS | {"num_local_experts": 4}, "layer 0 is a mixture of experts"),
    "deepseek_v3": (
        "deepseek_v3",
        LLAMA | MOE | DEEPSEEK | {"v_head_dim": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
        "layer 1 is a mixture of experts",
    ),
    "lfm2": ("lfm2", LLAMA | {"layer_types": ["conv", "full_attention"]}, "layers are not alike"),
    "mamba": ("mamba", ENDS | {"num_hidden_layers": 2, "hidden_size": 32}, "its parts are mixer"),
    "openai-gpt": ("openai-gpt", GPT, "no norm after its last layer"),
    "bert": ("bert", LLAMA, "is an encoder"),
    "bart": ("bart", {"d_model": 32, "decoder_layers": 2, "encoder_layers": 2}, "self_attn, encoder_attn, fc1, fc2"),
}

PROMPTS = ["Lucy Kelden was born in", "The occupation of Lena Ostker is", "Nina", "Where was L. Kelden born? In the"]
ANSWERS = ["Eastford, Beloria", "glass manager", "Blue Bank Systems of the North", "Velport"]
EDITS = [Edit(PROMPTS[0], "Velport", "Lucy Kelden")]


def random_model(kind: str, config: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@cache
def built(name: str) -> LM:
    return LM(random_model(*ARCHITECTURES[name]), world.load().text.tokenizer)


@pytest.fixture(params=list(ARCHITECTURES))
def arch(request: pytest.FixtureRequest) -> LM:
    """A model of each architecture, unedited."""
    lm = built(request.param)
    lm.restore()
    lm.padding_side = "right"
    return lm


def own_logprobs(lm: LM, prompts: list[str], answers: list[str]) -> list[list[float]]:
    """By the model itself, one text at a time."""
    found = []
    for pair in lm.text.pairs(prompts, answers):
        ids = torch.tensor([pair.ids])
        with torch.no_grad():
            logprobs = lm.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
        found.append([float(logprobs[i - 1, pair.ids[i]]) for i in range(pair.start, len(pair.ids))])
    return found


def logprobs(lm: LM) -> list[list[float]]:
    return [scored.logprob for scored in lm.answer(PROMPTS, ANSWERS)]


def flat(values: list[list[float]]) -> list[float]:
    return [value for some in values for value in some]


def test_log_probabilities_are_the_models_own(arch: LM) -> None:
    own = flat(own_logprobs(arch, PROMPTS, ANSWERS))
    for side in ("right", "left"):
        arch.padding_side = side  # type: ignore[assignment]
        assert flat(logprobs(arch)) == pytest.approx(own, abs=1e-4)
        check_logits(arch, "a tiny model")


def test_generation_is_the_librarys(arch: LM) -> None:
    arch.model.generation_config.eos_token_id = None
    for prompt, generated in zip(PROMPTS, arch.generate(PROMPTS, 6, stop=False), strict=True):
        ids = torch.tensor(arch.text.prompts([prompt]))
        inputs = {"inputs": ids, "attention_mask": torch.ones_like(ids)}
        said = arch.model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert generated.full == arch.text.decode(said[0].tolist())


def ft_m() -> FineTune:
    return FineTune(loss=CrossEntropy(), lr=3e-2, steps=3, layers=[1])


def rome() -> Locate:
    values = Values(sites=["mlp_out"], steps=2, lr=0.5, decay=1e-3, clamp=4.0)
    parts = {"keys": KeyReader(), "context_templates": ["{}"], "sampling": Sampling(lengths=[])}
    return Locate(values=values, solver=RankOne(covariance=False), layers=[0], statistics=None, **parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [ft_m, rome])
def test_an_edit_changes_the_answer_and_is_undone(arch: LM, make: Any) -> None:
    before = {name: value.clone() for name, value in arch.model.state_dict().items()}
    unedited, editor = own_logprobs(arch, [EDITS[0].prompt], [EDITS[0].target_new]), make()
    editor.fit(arch, ())
    editor.edit(arch, EDITS)
    edited = own_logprobs(arch, [EDITS[0].prompt], [EDITS[0].target_new])
    assert edited != unedited
    if make is ft_m:  # ROME's subject hardly moves the answer of a random model
        assert sum(edited[0]) > sum(unedited[0]) + 0.01
    assert flat(logprobs(arch)) == pytest.approx(flat(own_logprobs(arch, PROMPTS, ANSWERS)), abs=1e-4)
    arch.restore()
    after = arch.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("layer", [0, 1])
def test_a_pass_with_a_change_at_the_subject_is_the_whole_pass_with_it(arch: LM, layer: int) -> None:
    batch = made(arch)
    change = [torch.randn(len(batch), 32)]
    found = SubjectForward(arch, batch, layer, ["mlp_out"]).logits(change)
    assert torch.allclose(found, plainly(arch, batch, layer, ["mlp_out"], change), atol=1e-4)


def test_cached_lower_layers_change_nothing(arch: LM) -> None:
    arch.padding_side = "left"
    editor = ft_m()
    plain = logprobs(arch)
    arch.cache_lower_layers(editor.edited_parameters(arch), PROMPTS, ANSWERS)
    assert arch.cache_bytes > 0
    assert flat(logprobs(arch)) == pytest.approx(flat(plain), abs=1e-5)
    editor.edit(arch, EDITS)
    cached = logprobs(arch)
    arch.restore()
    arch.cache_lower_layers([])
    editor.edit(arch, EDITS)
    assert flat(cached) == pytest.approx(flat(logprobs(arch)), abs=1e-4)
    arch.restore()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("recurrent_gemma", "cannot be run as kedit runs a model"), ("nanochat", "calls the norm .* 2 times in a pass")],
)
def test_what_only_a_pass_shows_is_refused_when_a_model_is_loaded(kind: str, reason: str, tmp_path: Path) -> None:
    random_model(kind, LLAMA).save_pretrained(tmp_path)
    world.load().text.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=reason) as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(REFUSED))
def test_other_architectures_are_refused_with_the_reason(name: str) -> None:
    kind, config, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason) as caught:
        LM(random_model(kind, config), world.load().text.tokenizer)
    assert "\n" not in str(caught.value)
