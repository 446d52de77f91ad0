"""Models, encoders and adapters from disk: what is not complete, or not a causal language model, is refused in one
sentence before anything is run."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHAPES
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from kedit.common.errors import InputError
from kedit.lm import LM, load
from kedit.lm.check import check_logits

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
Break = Callable[[Path], object]
Tensors = dict[str, Tensor]


def tensors(change: Callable[[Tensors], Mapping[str, Tensor]]) -> Break:
    return lambda folder: save_file(dict(change(load_file(folder / WEIGHTS))), folder / WEIGHTS, {"format": "pt"})


def with_tensors(**more: Tensor) -> Break:
    return tensors(lambda held: held | {name.replace("__", "."): value for name, value in more.items()})


def without(part: str) -> Break:
    return tensors(lambda held: {name: value for name, value in held.items() if part not in name})


def config(**changes: Any) -> Break:
    def change(folder: Path) -> None:
        held = json.loads((folder / CONFIG).read_text())
        held.pop("layer_types", None)
        (folder / CONFIG).write_text(json.dumps(held | changes))

    return change


def written(name: str, text: str) -> Break:
    return lambda folder: (folder / name).write_text(text)


def removed(*names: str) -> Break:
    return lambda folder: [(folder / name).unlink() for name in names]


def saved_as(kind: str, **changes: Any) -> Break:
    """Another model in the folder."""

    def save(folder: Path) -> None:
        torch.manual_seed(0)
        shape = type(SHAPES[kind]).from_dict(SHAPES[kind].to_dict() | changes)
        AutoModelForCausalLM.from_config(shape).save_pretrained(folder)

    return save


def sharded(change: Break) -> Break:
    def save(folder: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder)
        (folder / WEIGHTS).unlink()
        model.save_pretrained(folder, max_shard_size="200KB")
        change(folder)

    return save


def index_without_a_shard(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    lost = sorted(set(index["weight_map"].values()))[1]
    kept = {name: shard for name, shard in index["weight_map"].items() if shard != lost}
    (folder / INDEX).write_text(json.dumps(index | {"weight_map": kept}))


def both(*changes: Break) -> Break:
    return lambda folder: [change(folder) for change in changes]


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


LAYER = "model__layers__0__self_attn__"
QUANTISED = {"gptq": {"quant_method": "gptq", "bits": 4}, "bitsandbytes": {"load_in_8bit": True}}
CUSTOM = '{"model_type": "mine", "auto_map": {"AutoConfig": "x.Y", "AutoModelForCausalLM": "x.Z"}}'
BROKEN: dict[str, tuple[Break, str]] = {
    "module. before every name": (
        tensors(lambda held: {f"module.{name}": value for name, value in held.items()}),
        r"lack 30 tensors \(lm_head\.weight, .*, \.\.\.\) of the model, and have 30 tensors \(module\.lm_head",
    ),
    "one tensor dropped": (without("layers.1.mlp.down_proj"), r"lack 1 tensor \(model\.layers\.1\.mlp\.down_proj"),
    "no head, not tied": (without("lm_head"), r"lack 1 tensor \(lm_head\.weight\)"),
    "tied, neither there": (both(saved_as("llama", tie_word_embeddings=True), without("embed")), "lack 2 tensors"),
    "no tensor at all": (tensors(lambda held: {}), "lack 30 tensors"),
    "a head of another shape": (
        with_tensors(lm_head__weight=torch.ones(512, 64)),
        r"1 tensor \(lm_head\.weight\) .* other shapes .*\[512, 64\], not \[1024, 64\]",
    ),
    "more layers in the config": (config(num_hidden_layers=4), r"lack 9 tensors \(model\.layers\.3\."),
    "fewer layers in the config": (config(num_hidden_layers=2), r"have 9 tensors \(model\.layers\.2\..* no place"),
    "biases that the config lacks": (
        both(saved_as("qwen2"), config(model_type="llama", architectures=["LlamaForCausalLM"])),
        r"have 9 tensors \(model\.layers\.0\.self_attn\.k_proj\.bias",
    ),
    "norms that the config lacks": (with_tensors(**{f"{LAYER}q_norm__weight": torch.ones(16)}), "q_norm.* no place"),
    "scales of quantised weights": (with_tensors(**{f"{LAYER}q_proj__scale": torch.ones(1)}), "scale.* no place"),
    "values that are not finite": (with_tensors(lm_head__weight=torch.full((1024, 64), torch.nan)), "not finite"),
    "a shard that is missing": (sharded(lambda d: sorted(d.glob("*.safetensors"))[1].unlink()), "No such file"),
    "an index that names too few": (sharded(index_without_a_shard), "lack 1 tensor"),
    "an index that is none": (sharded(written(INDEX, "{}")), "KeyError: 'weight_map'"),
    "empty weights": (written(WEIGHTS, ""), "header too small"),
    "pickled weights": (pickled, r"pytorch_model\.bin is a pickle.*save_pretrained"),
    "a config that is no object": (written(CONFIG, "null"), "its config cannot be loaded"),
    "a config of no model": (written(CONFIG, "{}"), "Should have a `model_type` key"),
    "a config of an unknown model": (written(CONFIG, '{"model_type": "nope"}'), "does not recognize this architecture"),
    "custom code": (written(CONFIG, CUSTOM), r"model\.trust_remote_code=true"),
    "a field of the wrong type": (config(num_hidden_layers="two"), "num_hidden_layers.*expected int"),
    "no layers": (config(num_hidden_layers=0), "no place|one stack of layers"),
    "unknown rotary embeddings": (config(rope_scaling={"rope_type": "mine", "factor": 2.0}), "KeyError: 'mine'"),
    "an encoder-decoder": (written(CONFIG, '{"model_type": "t5"}'), "t5 is an encoder-decoder"),
    "a multimodal model": (written(CONFIG, '{"model_type": "llava"}'), "llava is a multimodal model"),
    "no language model": (written(CONFIG, '{"model_type": "vit"}'), "vit is not a causal language model"),
    **{
        f"{name} weights": (config(quantization_config=how), rf"quantised \({name}\)")
        for name, how in QUANTISED.items()
    },
    "an adapter alone": (
        both(removed(CONFIG), written("adapter_config.json", '{"base_model_name_or_path": "org/base"}')),
        "a peft adapter of org/base, not a model",
    ),
    "an adapter beside a model": (written("adapter_config.json", "["), "a peft adapter, not a model"),
    "a broken generation config": (written("generation_config.json", "{"), "its generation config cannot be loaded"),
    "an end that is no token": (written("generation_config.json", '{"eos_token_id": "x"}'), "eos_token_id='x'"),
    "tokenizer.json={}": (written("tokenizer.json", "{}"), "its tokenizer cannot be loaded"),
    "a torn tokenizer.json": (written("tokenizer.json", "torn"), "its tokenizer cannot be loaded"),
    "a tokenizer_config that is no object": (written("tokenizer_config.json", "[]"), "its tokenizer cannot be loaded"),
    "no tokenizer.json": (removed("tokenizer.json"), r"put the model's tokenizer\.json beside its weights"),
    "no tokenizer, which transformers makes empty": (
        both(saved_as("gemma"), removed("tokenizer.json", "tokenizer_config.json")),
        "no vocabulary.*tokenizer.json",
    ),
    "a larger tokenizer": (saved_as("llama", vocab_size=1000), "1023 tokens, of which 24 lie beyond the 1000"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_model_that_is_not_whole_is_refused_in_one_sentence(small_dir: Path, name: str) -> None:
    change, said = BROKEN[name]
    change(small_dir)
    with pytest.raises(InputError, match=said) as caught:
        load(str(small_dir))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(small_dir), "")) < 500


SOUND: dict[str, Break] = {
    "tied": saved_as("llama", tie_word_embeddings=True),
    "tied, saved by its head": both(
        saved_as("llama", tie_word_embeddings=True),
        tensors(lambda held: {name.replace("model.embed_tokens", "lm_head"): v for name, v in held.items()}),
    ),
    "said to be tied, but two matrices": both(
        saved_as("llama", tie_word_embeddings=True), with_tensors(lm_head__weight=torch.randn(1024, 64))
    ),
    "names of the bare body": both(
        saved_as("gpt2"), tensors(lambda held: {name.removeprefix("transformer."): v for name, v in held.items()})
    ),
    "buffers of older versions": both(
        saved_as("gptj"),
        with_tensors(transformer__h__0__attn__bias=torch.ones(8), transformer__h__0__attn__masked_bias=torch.ones(1)),
    ),
    "another head beside it": with_tensors(v_head__summary__weight=torch.ones(1, 64), score__weight=torch.ones(1, 64)),
    "several shards": sharded(lambda folder: None),
    "a pad beyond the vocabulary": config(pad_token_id=5000),
    "several ends": written("generation_config.json", '{"eos_token_id": [0, 5]}'),
    "generation flags that do not fit": written("generation_config.json", '{"temperature": 0.5, "do_sample": false}'),
}


@pytest.mark.parametrize("name", list(SOUND))
def test_a_whole_model_is_loaded_whatever_its_form(small_dir: Path, tmp_path: Path, name: str) -> None:
    SOUND[name](small_dir)
    lm = load(str(small_dir))
    [scored] = lm.answer(["Lucy was born in"], ["Velport"])
    lm.save(tmp_path / "saved")
    assert load(str(tmp_path / "saved")).answer(["Lucy was born in"], ["Velport"]) == [scored]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_is_checked_to_its_rounding(small_dir: Path, dtype: str) -> None:
    assert load(str(small_dir), dtype=dtype).dtype == getattr(torch, dtype)


def test_weights_too_large_for_the_dtype_are_refused(small_dir: Path) -> None:
    tensors(lambda held: {name: 1e6 * value for name, value in held.items()})(small_dir)
    with pytest.raises(InputError, match=r"not finite.*too large for model\.dtype=float16"):
        load(str(small_dir), dtype="float16")


def test_what_transformers_warns_of_is_logged_once(small_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    config(rope_scaling={"rope_type": "linear", "factor": 2.0, "mine": 1})(small_dir)
    load(str(small_dir))
    assert sum(record.getMessage().count("transformers warns") for record in caplog.records) == 1
    assert "mine" in caplog.text


# --- the check of log-probabilities ----------------------------------------------------------------------------------


class Scaling(LlamaForCausalLM):
    """Multiplies its embeddings outside its body."""

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        if input_ids is not None:
            inputs_embeds = 3 * self.get_input_embeddings()(input_ids)
        return super().forward(inputs_embeds=inputs_embeds, **kwargs)


def test_a_model_that_kedit_would_run_otherwise_is_refused(lm: LM) -> None:
    torch.manual_seed(0)
    with pytest.raises(InputError, match=r"Scaling predicts something else .* than its layers and head"):
        check_logits(LM(Scaling(SHAPES["llama"]), lm.text.tokenizer), "DIR")


def test_a_model_that_reads_later_tokens_is_refused(lm: LM) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(SHAPES["llama"])
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(InputError, match="or reads later tokens"):
        check_logits(LM(model, lm.text.tokenizer), "DIR")


def test_a_model_of_few_positions_is_checked_within_them(lm: LM) -> None:
    torch.manual_seed(0)
    small = LM(LlamaForCausalLM(SHAPES["llama"]), lm.text.tokenizer)
    for small.context in (1, 4, 8):
        check_logits(small, "DIR")


# --- encoders --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from kedit.lm.sentence_encoder import MINILM, source

    folder = tmp_path_factory.mktemp("encoder") / "minilm"
    shutil.copytree(source(MINILM), folder)
    return folder


def copied(folder: Path, to: Path, change: Break) -> Path:
    shutil.copytree(folder, to / "copy")
    change(to / "copy")
    return to / "copy"


ENCODERS: dict[str, tuple[Break, str]] = {
    "a tensor dropped": (without("layer.3.output.dense.weight"), r"lack 1 tensor \(encoder\.layer\.3"),
    "module. before every name": (
        tensors(lambda held: {f"module.{name}": value for name, value in held.items()}),
        "lack .* of the model, and have",
    ),
    "no tokenizer": (removed("tokenizer.json", "vocab.txt"), "no vocabulary|cannot be loaded"),
    "torn weights": (written(WEIGHTS, "torn"), "cannot be loaded"),
    "a broken config": (written(CONFIG, "null"), "cannot be loaded"),
}


@pytest.mark.parametrize("name", list(ENCODERS))
def test_a_sentence_encoder_that_is_not_whole_is_refused(minilm: Path, tmp_path: Path, name: str) -> None:
    from kedit.lm.sentence_encoder import load as load_encoder

    change, said = ENCODERS[name]
    with pytest.raises(InputError, match=f"sentence encoder.*({said})") as caught:
        load_encoder(str(copied(minilm, tmp_path, change)))
    assert "\n" not in str(caught.value)


def test_a_pooler_that_no_embedding_reads_may_be_missing(minilm: Path, tmp_path: Path) -> None:
    from kedit.lm.sentence_encoder import load as load_encoder

    folder = copied(minilm, tmp_path, without("pooler"))
    assert torch.equal(load_encoder(str(folder))(["Lucy"]), load_encoder(str(minilm))(["Lucy"]))
