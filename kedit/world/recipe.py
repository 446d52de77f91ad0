"""The world's language model: a small Llama that learns the facts from scratch in a few minutes on one core."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kedit.common.cache import sha256
from kedit.common.progress import progress
from kedit.world.corpus import EOT, EOT_ID, FIRST_MIX, Corpus, Rows, train_tokenizer
from kedit.world.facts import World


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sizes and optimisation. The defaults are recipe W (1.97 M parameters), whose weights are shipped."""

    mlp: int = 1024
    width: int = 128
    layers: int = 4
    heads: int = 4
    vocabulary: int = 1024
    steps: int = 1200
    rows: int = 32  # rows of `length` tokens in a step
    length: int = 64
    first_people: int = 130  # the curriculum: in the first share of the steps only these, and much copying
    first_share: float = 0.25
    muon_lr: float = 0.02  # hidden matrices
    adam_lr: float = 3e-3  # embeddings and norms
    warm_up: int = 50


def train(world: World, recipe: Recipe, directory: Path) -> None:
    """Train and save an ordinary transformers directory (float32 safetensors, tokenizer). Deterministic: one thread,
    seeds from the world's. Shows a progress bar."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)  # two threads on a busy machine were five times slower than one
    torch.manual_seed(world.seed)
    try:
        tokenizer = train_tokenizer(world, recipe.vocabulary)
        model = new_model(recipe)
        _optimise(model, world, recipe, Rows(Corpus(world, f"corpus-{world.seed}"), tokenizer, recipe.length))
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
    model.config.use_cache = True
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=EOT, eos_token=EOT).save_pretrained(directory)


def new_model(recipe: Recipe) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocabulary,
            hidden_size=recipe.width,
            intermediate_size=recipe.mlp,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            tie_word_embeddings=True,
            max_position_embeddings=512,
            bos_token_id=EOT_ID,
            eos_token_id=EOT_ID,
            use_cache=False,
        )
    )


def _optimise(model: LlamaForCausalLM, world: World, recipe: Recipe, rows: Rows) -> None:
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(hidden, lr=recipe.muon_lr, momentum=0.95, weight_decay=0.05),
        torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.98)),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: _rate(step, recipe)) for o in optimizers]
    with progress(total=recipe.steps, desc="world model", unit="step") as bar:
        for ids, weights in _stream(world, recipe, rows):
            loss = _loss(model, ids, weights)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            bar.update()
            if bar.n % 20 == 0:
                bar.set_postfix(loss=f"{float(loss.detach()):.2f}", refresh=False)


def _stream(world: World, recipe: Recipe, rows: Rows) -> Iterator[tuple[Int[Tensor, "n t"], Float[Tensor, "n t"]]]:
    few = rows.batches(world.people[: recipe.first_people], recipe.rows, FIRST_MIX)
    everybody = rows.batches(world.people, recipe.rows)
    return (next(few if step < recipe.first_share * recipe.steps else everybody) for step in range(recipe.steps))


def _loss(model: LlamaForCausalLM, ids: Int[Tensor, "n t"], weights: Float[Tensor, "n t"]) -> Float[Tensor, ""]:
    """Weighted mean of the tokens' cross-entropy."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision() == "bfloat16"):
        logits = model(input_ids=ids[:, :-1]).logits.float()
    losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()


def _rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, constant to 40 %, then a cosine to 2 %."""
    done = step / recipe.steps
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    return 1.0 if done < 0.4 else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - 0.4) / 0.6))


def precision() -> str:
    """bfloat16 matrix products where the processor has them (1.5 times faster), else float32."""
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "float32"


def key(world: World, recipe: Recipe) -> dict[str, object]:
    """Everything the trained model depends on, the code that makes it included."""
    code = [sha256(Path(__file__).with_name(f"{name}.py")) for name in ("facts", "corpus", "recipe")]
    return {
        "world": asdict(world),
        "recipe": asdict(recipe),
        "precision": precision(),
        "torch": torch.__version__,
        "code": code,
    }
