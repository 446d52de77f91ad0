"""What kedit is compared with: the same methods as straightforward loops.

The whole model at every step, a second copy of it as reference, one prompt at a time, logits at every position. Fair:
frozen parameters, no gradient where none is needed, the same dtype, one tokenisation, a KV cache in generation.
"""

from collections.abc import Callable
from copy import deepcopy

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional


class Plain:
    """One model; `start` is where the answer begins in `ids` [1 t]."""

    def __init__(self, model: nn.Module, name: str, lr: float):
        self.model, self.lr = model.requires_grad_(False), lr
        self.weight = model.get_parameter(name)

    def logits(self, model: nn.Module, ids: Tensor, start: int) -> Tensor:
        return model(input_ids=ids, use_cache=False).logits[0, start - 1 : -1]

    def _tune(self, steps: int, cycles: int, begin: Callable[[], bool], loss: Callable[[], Tensor]) -> int:
        self.weight.requires_grad_(True)
        optimizer, taken = torch.optim.Adam([self.weight], lr=self.lr), 0
        for _ in range(cycles):
            if begin():
                break
            for _ in range(steps):
                value = loss()
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                taken += 1
        self.weight.requires_grad_(False)
        self.weight.grad = None
        return taken

    def ft_m(self, ids: Tensor, start: int, steps: int) -> int:
        return self._tune(
            steps,
            1,
            lambda: False,
            lambda: functional.cross_entropy(self.logits(self.model, ids, start), ids[0, start:]),
        )

    def lora(
        self, ids: Tensor, start: int, steps: int, rank: int, alpha: int, layers: list[int], dropout: float = 0.0
    ) -> int:
        """A new adapter by peft on these layers, trained through the whole model and merged."""
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, layers_to_transform=layers)
        with torch.random.fork_rng(devices=[]):
            wrapped = get_peft_model(self.model, config)
        trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
        for name, parameter in trained.items():
            if "lora_A" in name:  # as kedit draws them
                parameter.data.copy_(nn.init.kaiming_uniform_(torch.empty(parameter.shape), a=5**0.5))
        wrapped.train(bool(dropout))
        optimizer = torch.optim.Adam(trained.values(), lr=self.lr)
        for _ in range(steps):
            loss = functional.cross_entropy(self.logits(wrapped, ids, start), ids[0, start:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.model = wrapped.merge_and_unload().requires_grad_(False).eval()
        return steps

    def kdpo(self, ids: Tensor, start: int, steps: int, cycles: int, beta: float, separately: bool = False) -> int:
        """`separately`: chosen and rejected in passes of their own, as trainers of DPO have them."""
        reference, chosen = deepcopy(self.model).requires_grad_(False), ids[0, start:]
        rejected = chosen

        def begin() -> bool:
            nonlocal rejected
            with torch.no_grad():
                rejected = self.logits(self.model, ids, start).argmax(-1)
            return bool((rejected == chosen).all())

        def margin(model: nn.Module) -> Tensor:
            new = self.logits(model, ids, start).log_softmax(-1)
            old = self.logits(model, ids, start).log_softmax(-1) if separately else new
            return (new.gather(-1, chosen[:, None]) - old.gather(-1, rejected[:, None])).sum()

        def loss() -> Tensor:
            with torch.no_grad():
                then = margin(reference)
            return -functional.logsigmoid(beta * (margin(self.model) - then))

        return self._tune(steps, cycles, begin, loss)

    def dpo(self, ids: Tensor, start: int, steps: int, cycles: int, beta: float) -> int:
        reference, rejected = deepcopy(self.model).requires_grad_(False), ids

        def begin() -> bool:
            nonlocal rejected
            length = ids.shape[1] - start
            rejected = self.generate(ids[:, :start], length)
            return bool(torch.equal(rejected, ids))

        def margin(model: nn.Module) -> Tensor:
            pair = [self.logits(model, text, start).log_softmax(-1) for text in (ids, rejected)]
            said = [p.gather(-1, t[0, start:, None]).sum() for p, t in zip(pair, (ids, rejected), strict=True)]
            return said[0] - said[1]

        def loss() -> Tensor:
            with torch.no_grad():
                then = margin(reference)
            return -functional.logsigmoid(beta * (margin(self.model) - then))

        return self._tune(steps, cycles, begin, loss)

    @torch.no_grad()
    def generate(self, ids: Tensor, n: int, top_k: int = 1) -> Tensor:
        text, cache = ids, None
        for _ in range(n):
            out = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            top = out.logits[:, -1].topk(top_k)
            ids = top.indices.gather(-1, torch.multinomial(top.values.softmax(-1), 1))
            text = torch.cat([text, ids], dim=1)
        return text

    @torch.no_grad()
    def score(self, ids: Tensor, start: int) -> list[int]:
        return self.logits(self.model, ids, start).argmax(-1).tolist()
