"""Cross-entropy of the answer, the prompt masked: FT-M and everything built on it."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kedit.lm.text import Batch
from kedit.losses import Loss


class CrossEntropy(Loss):
    """Mean over the answer's tokens of -log p(token | prompt, earlier answer tokens); no end-of-text token is
    trained."""

    def __call__(self, batch: Batch, logits: Float[Tensor, "k v"]) -> Float[Tensor, " n"]:
        return batch.mean(functional.cross_entropy(logits, batch.gold, reduction="none"))
