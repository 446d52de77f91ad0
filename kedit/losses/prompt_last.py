"""FT-L: every token of the answer is asked of the prompt's last position."""

import torch
from jaxtyping import Float
from torch import Tensor

from kedit.losses import Loss, LossInputs, log_p


class PromptLast(Loss):
    """Mean over the answer's tokens of -log p(token | prompt), each at the prompt's last position.

    An answer of several tokens is not modelled as a sequence: this is why FT-L hardly learns one (EasyEdit's
    `prompt_last`, and FT of the ROME and MEMIT papers). `train_special_tokens`: the answer is tokenised on its own
    with the tokenizer's special tokens, so that a Llama is also trained to say BOS there, as EasyEdit does.
    """

    def __init__(self, train_special_tokens: bool = False):
        self.train_special_tokens = train_special_tokens

    def __call__(self, view: LossInputs, logits: Float[Tensor, "k v"]) -> Float[Tensor, " n"]:
        batch = view.batch
        first = torch.ones_like(batch.row, dtype=torch.bool)
        first[1:] = batch.row[1:] != batch.row[:-1]
        asked = logits[first].log_softmax(-1)  # one place for each row
        gold, row = batch.gold, batch.row
        if self.train_special_tokens:
            special = torch.tensor(view.lm.text.special_ids, dtype=gold.dtype, device=gold.device)
            rows = torch.arange(len(asked), device=gold.device)
            gold, row = (
                torch.cat([gold, special.repeat(len(asked))]),
                torch.cat([row, rows.repeat_interleave(len(special))]),
            )
        values = -log_p(asked[row], gold)
        total = values.new_zeros(len(asked)).index_add(0, row, values)
        return total / total.new_zeros(len(asked)).index_add(0, row, torch.ones_like(values))
