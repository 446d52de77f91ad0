"""RECIPE's network: what represents stored edits, queries and the sentinel, and makes a soft prompt of an edit."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kedit.common.errors import InputError
from kedit.common.options import Count, CountOrNone
from kedit.lm.text_encoder import TextEncoder

EPSILON = 1e-3  # some features hardly differ between texts


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """`width`: of representations; `sentinel_tokens`: learnt input embeddings that the encoder reads in place of a
    text; `prompt_tokens`: length of the soft prompt; `train_encoder`: whether the encoder learns, too. `alike`: queries
    are represented as edits are before the first update, so that retrieval begins as similarity of features.
    `standardise`: features have mean 0 and standard deviation 1 over all training texts. As an encoder gives them, most
    of a feature is the same for all texts; that share is then learnt first, and every edit gets one soft prompt."""

    width: Count = 4096
    sentinel_tokens: Count = 10
    prompt_tokens: CountOrNone = 3
    train_encoder: bool = True
    alike: bool = False
    standardise: bool = False

    def __post_init__(self) -> None:
        if self.standardise and self.train_encoder:
            raise InputError(
                "editor.network.standardise=true needs an encoder that does not learn: set "
                "editor.network.train_encoder=false, or standardise=false"
            )

    def build(self, encoder: TextEncoder, model_width: int) -> "RecipeNetwork":
        """Untrained; random numbers are drawn."""
        return RecipeNetwork(self, encoder, model_width)


class RecipeNetwork(nn.Module):
    """See RecipeOptions (Chen et al. 2024, arXiv 2405.03279, §3.2 and the released code)."""

    feature_mean: Tensor
    feature_deviation: Tensor

    def __init__(self, options: RecipeOptions, encoder: TextEncoder, model_width: int):
        super().__init__()
        self.options, self.model_width = options, model_width
        self._frozen = [] if options.train_encoder else [encoder]  # in a list: no part of what is learnt and saved
        if options.train_encoder:
            self.learnt_encoder = encoder.requires_grad_(True)
        features, width = 4 * encoder.hidden_size, options.width
        self.sentinel_tokens = nn.Parameter(0.02 * torch.randn(options.sentinel_tokens, encoder.hidden_size))
        self.knowledge_head, self.query_head = Head(features, width), Head(features, width)
        if options.alike:
            self.query_head.load_state_dict(self.knowledge_head.state_dict())
        self.generator = nn.Sequential(Residual(width), nn.Linear(width, options.prompt_tokens * model_width))
        if options.standardise:
            self.register_buffer("feature_mean", torch.zeros(features))
            self.register_buffer("feature_deviation", torch.ones(features))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RecipeNetwork":
        """The encoder moves with the network also if it does not learn."""
        for encoder in self._frozen:
            encoder._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @property
    def encoder(self) -> TextEncoder:
        return self._frozen[0] if self._frozen else self.learnt_encoder

    def features(self, texts: Sequence[str]) -> Float[Tensor, "n f"]:
        """What the encoder says of texts; with a gradient if it learns."""
        return self._standard(self._read(texts))

    def observe(self, texts: Sequence[str]) -> Float[Tensor, "n f"]:
        """The features of all training texts, over which they are standardised from now on."""
        read = self._read(texts)
        if self.options.standardise:
            self.feature_mean.copy_(read.mean(0))
            self.feature_deviation.copy_(read.std(0) + EPSILON)
        return self._standard(read)

    def _read(self, texts: Sequence[str]) -> Float[Tensor, "n f"]:
        with nullcontext() if self.options.train_encoder else torch.no_grad():
            return self.encoder(texts)

    def _standard(self, read: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        return (read - self.feature_mean) / self.feature_deviation if self.options.standardise else read

    def knowledge(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n w"]:
        """Representations of stored edits."""
        return self.knowledge_head(features)

    def query(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n w"]:
        """Representations of queries; their inner products with those of edits are the scores, q k / sqrt(w)."""
        return self.query_head(features) / sqrt(self.options.width)

    def sentinel(self) -> Float[Tensor, " w"]:
        """The representation that an edit must beat to be used."""
        return self.knowledge_head(self._standard(self.encoder.of_embeddings(self.sentinel_tokens)[None]))[0]

    def prompts(self, knowledge: Float[Tensor, "n w"]) -> Float[Tensor, "n m d"]:
        """The soft prompts of these edits."""
        return self.generator(knowledge).view(len(knowledge), self.options.prompt_tokens, self.model_width)


class Residual(nn.Module):
    """x + max(0, W x + b)."""

    def __init__(self, width: int):
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.map(x).relu()


class Head(nn.Sequential):
    """A linear map, and a residual one behind it."""

    def __init__(self, features: int, width: int):
        super().__init__(nn.Linear(features, width), Residual(width))
