"""From last hidden states to logits, as the model's own class computes them."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from kedit.lm.hooks import instead


def wrapper_logits(model: PreTrainedModel, body: nn.Module, states: Float[Tensor, "k d"]) -> Float[Tensor, "k v"]:
    """The model's own forward pass with `states` as what its body returns, so that whatever the class puts between the
    body and the logits is applied: a scale (Cohere, Granite), a soft cap (Gemma 2), another matrix, a bias."""
    returned = _Returned(last_hidden_state=states[None])
    with instead(body, lambda *args, **kwargs: returned):
        return model(inputs_embeds=states[None], use_cache=False, return_dict=True).logits[0]


class _Returned(BaseModelOutputWithPast):
    """Last hidden states; whatever else a class reads from its body's output (cross attentions, ...) is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
