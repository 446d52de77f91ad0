"""What a fine-tuning edit minimises. One file a loss; `conf/editor/loss/` has a yaml for each."""

from jaxtyping import Float
from torch import Tensor

from kedit.lm.text import Batch


class Loss:
    """A loss over the answer tokens of a batch. What it keeps belongs to one edit and one batch."""

    def refresh(self, batch: Batch, logits: Float[Tensor, "k v"], cycle: int) -> bool:
        """Called at the start of each cycle with the logits of the weights as they are; in cycle 0 these are the
        weights the edit starts from. True: nothing is left to learn."""
        return False

    def __call__(self, batch: Batch, logits: Float[Tensor, "k v"]) -> Float[Tensor, " n"]:
        """One value for each row."""
        raise NotImplementedError
