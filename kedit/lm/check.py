"""Checks of a model that has just been loaded.

All its weights come from its files, its tokenizer belongs to it, and its log-probabilities are those of its own class.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.common.errors import InputError, first_line
from kedit.lm.anatomy import vocabulary_size
from kedit.lm.hooks import hook
from kedit.lm.text import Pair, Text

if TYPE_CHECKING:
    from kedit.lm.model import LM

TEXT = "The capital of France is Paris, and its largest river is the Seine."
QUESTIONS = {
    "The capital of France is": "Paris",
    "The mother tongue of Danielle Darrieux is": "English",
    "Who wrote Hamlet?": "William Shakespeare",
    "The Eiffel Tower is located in the city of": "Rome",
    "2 plus 2 is": "4",
}
TOKENS, MORE = 12, 2  # that the model reads, and says, for the check
ROUNDING = 4  # units in the last place of the largest logit that two ways through a model may differ by
LEAST = 1e-4  # relative difference that is always allowed


# --- weights ---------------------------------------------------------------------------------------------------------


def check_weights(model: nn.Module, source: str, info: Mapping[str, Any], ignore: str = "$^") -> None:
    """Raises InputError if tensors of the model are not in its files, or if tensors of the files change what a layer
    computes but have no place in the model. `info` is what transformers reports with `output_loading_info`; it would
    fill the missing ones with random numbers. Keys that match the pattern `ignore` may be missing."""
    missing = [key for key in sorted(info["missing_keys"]) if not re.search(ignore, key)]
    unexpected, mismatched = sorted(info["unexpected_keys"]), sorted(info["mismatched_keys"])
    if missing:
        others = f", and have {counted(unexpected)} that it does not know" if unexpected else ""
        raise InputError(
            f"{source}: the weight files lack {counted(missing)} of the model{others}; give the complete weights, with "
            "the names that transformers gives them"
        )
    if mismatched:
        name, in_file, in_model = mismatched[0]
        raise InputError(
            f"{source}: {counted([key for key, *_ in mismatched])} of the weight files have other shapes in "
            f"config.json ({name} is {list(in_file)}, not {list(in_model)}); give the config.json that belongs to "
            "the weights"
        )
    if lost := lost_keys(model, unexpected):
        raise InputError(
            f"{source}: the weight files have {counted(lost)} for which the model of config.json has no place; give "
            "the config.json that belongs to the weights"
        )


def check_encoder(encoder: nn.Module, source: str, tokenizer: PreTrainedTokenizerBase, ignore: str = "$^") -> None:
    """`check_weights` and `check_vocabulary` of the transformers models in an encoder of sentence-transformers.

    That library passes on no report, so names and shapes are compared once more, on the meta device.
    """
    for model in [module for module in encoder.modules() if isinstance(module, PreTrainedModel)]:
        check_vocabulary(tokenizer, vocabulary_size(model), source)
        place: dict[str, Any] = {"device_map": "meta", "ignore_mismatched_sizes": True, "output_loading_info": True}
        kind: Any = type(model)
        try:
            _, info = kind.from_pretrained(model.name_or_path, **place)
        except OSError:  # a layout in which the weights lie elsewhere
            continue
        check_weights(model, source, info, ignore)


def check_adapter(adapted: PeftModel, name: str, folder: Path) -> None:
    """Raises InputError if the tensors of an adapter's folder are not those that its config makes in the model: peft
    would leave the missing ones at their initial values, and drop the others."""
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, "pt") as file:
        found = set(file.keys())
    expected = set(get_peft_model_state_dict(adapted, adapter_name=name))
    if missing := sorted(expected - found):
        raise InputError(f"{folder}: the adapter's file lacks {counted(missing)} that its config names; save it again")
    if lost := sorted(found - expected):
        raise InputError(
            f"{folder}: the adapter's file has {counted(lost)} for which its config or the model has no place; give "
            "the adapter of this model, with the config that belongs to it"
        )


def lost_keys(model: nn.Module, unexpected: Iterable[str]) -> list[str]:
    """The unexpected keys that change what the layers compute: a further layer, or a further parameter of a layer.

    Others are harmless: another head, a vision tower, buffers that older versions have saved.
    """
    modules, parameters = dict(model.named_modules()), {_pattern(name) for name, _ in model.named_parameters()}

    def belongs(key: str) -> bool:
        parent, _, leaf = key.rpartition(".")
        module, outer = modules.get(parent), parent.rpartition(".")[0]
        if module is not None:
            return any(True for _ in module.parameters(recurse=False))
        in_layer = outer in modules and re.search(r"\.\d+(\.|$)", outer) is not None
        return _pattern(key) in parameters or (in_layer and leaf in ("weight", "bias"))

    return [key for key in unexpected if belongs(key)]


def _pattern(key: str) -> str:
    """The name with its layer's index left out."""
    return re.sub(r"\.\d+(?=\.)", ".*", key)


def counted(keys: Sequence[str]) -> str:
    """How many tensors, and the names of the first three."""
    return f"{len(keys)} tensor{'s' * (len(keys) > 1)} ({', '.join(keys[:3])}{', ...' * (len(keys) > 3)})"


# --- tokenizer -------------------------------------------------------------------------------------------------------


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, embedded: int, source: str) -> None:
    """Raises InputError if the tokenizer has no vocabulary (its file is missing: transformers then makes an empty one),
    or tokens beyond the `embedded` ones. Added tokens may lie beyond: a pad that the model never reads."""
    added = tokenizer.get_added_vocab()
    own = [index for token, index in tokenizer.get_vocab().items() if token not in added]
    if not own:
        raise InputError(
            f"{source}: the tokenizer has no vocabulary; put the model's tokenizer.json beside its weights"
        )
    if beyond := [index for index in own if index >= embedded]:
        raise InputError(
            f"{source}: the tokenizer has {len(own)} tokens, of which {len(beyond)} lie beyond the {embedded} that the "
            "model embeds; give the tokenizer that belongs to the model"
        )


def check_tokenizer(text: Text, source: str) -> None:
    """Raises InputError if the vocabulary is not the model's, or if prompts are regularly tokenised differently when an
    answer follows. That a single prompt merges with its answer is not refused."""
    check_vocabulary(text.tokenizer, text.vocabulary, source)
    starts = text.prompts(list(QUESTIONS))
    pairs = [text.tokens(f"{prompt} {answer}") for prompt, answer in QUESTIONS.items()]
    merged = [ids[: len(start)] != start or len(ids) == len(start) for ids, start in zip(pairs, starts, strict=True)]
    if sum(merged) > len(merged) / 2:
        raise InputError(
            f"{source}: its tokenizer splits a prompt differently if an answer follows, so answers cannot be located; "
            "give a model with another tokenizer"
        )


# --- log-probabilities -----------------------------------------------------------------------------------------------


@torch.no_grad()
def check_logits(lm: "LM", source: str) -> None:
    """Raises InputError if kedit's way through the model does not give the log-probabilities of `model(...)` on a short
    text, equal to 1e-4 in float32 and to the dtype's rounding otherwise; if they depend on padding or on later tokens;
    or if the model, continuing a text with a KV cache, says another token than it predicts without one.

    Four passes over about ten tokens.
    """
    ids = lm.text.prompts([TEXT])[0][: max(0, min(TOKENS, lm.context - MORE))]
    if len(ids) < 4:
        return
    half = len(ids) // 2
    shorter = [*ids[:half], ids[0] if ids[half] != ids[0] else ids[1]]  # begins the same, ends with another token
    norms: list[int] = []
    try:
        inputs = torch.tensor([ids], device=lm.device)
        with hook(lm.model.get_submodule(lm.anatomy.norm).register_forward_hook(lambda *_: norms.append(1))):
            own = lm.model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits[0].float()
        more = [Pair([*start, *ids[:MORE]], len(start)) for start in (ids[:half], ids)]
        batch = lm.batch([Pair(ids, 1), Pair(shorter, 1), *lm.greedy_continuation(lm.batch(more)).pairs])
        ours = lm.answer_logits(batch).float()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _unfit(lm, source, f"cannot be run as kedit runs a model ({first_line(error)})") from error
    if len(norms) != 1:
        raise _unfit(lm, source, f"calls the norm behind its layers {len(norms)} times in a pass")
    if not bool(own.isfinite().all()):
        raise InputError(
            f"{source}: its logits for a short text are not finite; the weights are damaged, or too large for "
            f"model.dtype={str(lm.dtype).removeprefix('torch.')}"
        )
    _check_equal(lm, own.to(ours.device), ours.split([len(ids) - 1, half, 2 * MORE]), batch.gold[-2 * MORE :], source)


def _check_equal(lm: "LM", own: Tensor, ours: Sequence[Tensor], generated: Tensor, source: str) -> None:
    """`own` [t v]: the model's logits of the text. `ours`: kedit's before each token but the first of the text, the
    same of the shorter one, and those before each token that was `generated`."""
    allowed = max(LEAST, ROUNDING * torch.finfo(lm.dtype).eps) * max(1.0, float(own.abs().max()))
    whole, shorter, continued = (logits.log_softmax(-1) for logits in ours)
    expected = own.log_softmax(-1)
    most = continued.max(-1).values - continued.gather(-1, generated[:, None])[:, 0]
    differences = {
        "than its layers and head do, or reads later tokens, as an encoder does": whole - expected[:-1],
        "behind other tokens or padding": shorter - expected[: len(shorter)],
        "with a KV cache than without one": most,
    }
    for what, difference in differences.items():
        off = float(difference.abs().max())
        if not off <= allowed:
            raise _unfit(lm, source, f"predicts something else (by {off:.2g}) {what}")


def _unfit(lm: "LM", source: str, why: str) -> InputError:
    return InputError(f"{source}: {type(lm.model).__name__} {why}; give a model of another architecture")
