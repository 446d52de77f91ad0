"""A transformers encoder as a part of something that is learnt: its hidden states pooled in four ways."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from kedit.common.errors import InputError, first_line
from kedit.lm.check import check_encoder
from kedit.lm.loading import identity
from kedit.lm.sentence_encoder import UNUSED, source

BATCH = 64  # texts that are read together


class TextEncoder(nn.Module):
    """`encoder`: a hub id or a folder. An encoder whose files have no pooler is pooled at its first token instead."""

    def __init__(self, encoder: str):
        super().__init__()
        place = source(encoder)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(place)
            options = {"use_safetensors": True, "output_loading_info": True}
            self.model, info = AutoModel.from_pretrained(place, **options)
        except (OSError, ValueError) as error:
            raise InputError(
                f"the text encoder {encoder} cannot be loaded ({first_line(error)}); give a local directory, or a hub "
                "id that you can reach"
            ) from error
        check_encoder(self, f"the text encoder {encoder}", self.tokenizer, UNUSED)
        self.pools = not any("pooler" in key for key in info["missing_keys"])
        self.identity = identity(place, self.model.config)
        self.hidden_size: int = self.model.config.hidden_size
        self.longest = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings - 2)
        self.eval().requires_grad_(False)

    def forward(self, texts: Sequence[str]) -> Float[Tensor, "n f"]:
        """Pooler, mean, maximum and minimum of the last hidden states, side by side (f = 4 hidden sizes); what is
        longer than the encoder reads is cut."""
        parts = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
        return torch.cat([self._read(part) for part in parts])

    def _read(self, texts: Sequence[str]) -> Float[Tensor, "n f"]:
        given = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(self.model.device)
        return self._pooled(self.model(**given), given["attention_mask"].bool())

    def of_embeddings(self, tokens: Float[Tensor, "t d"]) -> Float[Tensor, " f"]:
        """The same of one sequence of input embeddings."""
        real = torch.ones(1, len(tokens), dtype=torch.bool, device=tokens.device)
        return self._pooled(self.model(inputs_embeds=tokens[None], attention_mask=real.long()), real)[0]

    def _pooled(self, output: object, real: Bool[Tensor, "n t"]) -> Float[Tensor, "n f"]:
        hidden: Tensor = output.last_hidden_state  # type: ignore[attr-defined]
        first: Tensor = output.pooler_output if self.pools else hidden[:, 0]  # type: ignore[attr-defined]
        padded, n = ~real[..., None], real.sum(-1, keepdim=True)
        low, high = hidden.masked_fill(padded, torch.inf), hidden.masked_fill(padded, -torch.inf)
        return torch.cat([first, hidden.masked_fill(padded, 0.0).sum(1) / n, high.amax(1), low.amin(1)], -1)
