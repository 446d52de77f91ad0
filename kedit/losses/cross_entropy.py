"""Cross-entropy of the answer: FT-M and everything built on it."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kedit.common.options import Share
from kedit.losses import Loss, LossInputs


class CrossEntropy(Loss):
    """Mean over a row's trained tokens of -log p(token | what stands before it); no end-of-text token is trained.

    `label_smoothing` spreads this share of the target evenly over the vocabulary (OVERTONE §4.4 compares with it).
    """

    def __init__(self, label_smoothing: Share = 0.0):
        self.label_smoothing = label_smoothing

    def __call__(self, view: LossInputs, logits: Float[Tensor, "k v"]) -> Float[Tensor, " n"]:
        batch = view.batch
        return batch.mean(
            functional.cross_entropy(logits, batch.gold, reduction="none", label_smoothing=self.label_smoothing)
        )
