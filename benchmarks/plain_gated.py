"""GRACE, WISE and MELO as straightforward loops: the whole model at every step, one hook in the matrix, logits at every
position, no padding. What kedit's editors are compared with, in speed and edit by edit."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Label = list[int]  # the prompt masked by -100, then the answer


class PlainGated:
    """One model; `module` is the matrix whose output is changed. An edit is token ids [1 t] and where its answer
    begins."""

    def __init__(self, model: nn.Module, module: str):
        self.model = model.requires_grad_(False)
        self.matrix = model.get_submodule(module)
        self.transposed = type(self.matrix).__name__ == "Conv1D"

    def nll(self, ids: Tensor, start: int) -> Tensor:
        logits = self.model(input_ids=ids, use_cache=False).logits
        return functional.cross_entropy(logits[0, start - 1 : -1], ids[0, start:])

    def product(self, weight: Tensor, states: Tensor) -> Tensor:
        out = states @ (weight if self.transposed else weight.T)
        return out if self.matrix.bias is None else out + self.matrix.bias

    def hooked(self, change: Callable[[Tensor, Tensor], Tensor], module: nn.Module | None = None) -> Any:
        return (module or self.matrix).register_forward_hook(lambda _, args, out: change(args[0], out))

    def seen(self, ids: Tensor, module: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """What enters and leaves the matrix, [t f] and [t d]."""
        kept: list[tuple[Tensor, Tensor]] = []
        handle = self.hooked(lambda x, out: kept.append((x[0], out[0])) or out, module)
        with torch.no_grad():
            self.model(input_ids=ids, use_cache=False)
        handle.remove()
        return kept[0]


class PlainGrace(PlainGated):
    """`values`: where each edit's value begins. `released`: labels match by their means, and are kept in the opposite
    order of keys, as in the released code."""

    def __init__(
        self,
        model: nn.Module,
        module: str,
        *,
        lr: float,
        steps: int,
        radius: float,
        values: Sequence[Tensor],
        released: bool = True,
    ):
        super().__init__(model, module)
        self.lr, self.steps, self.radius, self.initial, self.released = lr, steps, radius, list(values), released
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.radii: list[float] = []
        self.labels: list[Label] = []  # the newest first, as the released code keeps them

    def edit(self, ids: Tensor, start: int) -> int:
        key, value = self.seen(ids)[0][start - 1], self.initial.pop(0)
        slot = self._slot(key, value, [-100] * start + ids[0, start:].tolist())
        value = self.values[slot].clone().requires_grad_(True)
        optimizer = torch.optim.Adam([value], lr=self.lr)

        def put(x: Tensor, out: Tensor) -> Tensor:
            here = torch.arange(out.shape[1], device=out.device) == start - 1
            return torch.where(here[None, :, None], value, out)

        handle = self.hooked(put)
        for _ in range(self.steps):
            optimizer.zero_grad()
            self.nll(ids, start).backward()
            optimizer.step()
        handle.remove()
        self.values[slot] = value.detach()
        return self.steps

    def _slot(self, key: Tensor, value: Tensor, label: Label) -> int:
        def add(radius: float) -> int:
            self.keys.append(key)
            self.values.append(value)
            self.radii.append(radius)
            self.labels.insert(0 if self.released else len(self.labels), label)
            return len(self.keys) - 1

        if not self.keys:
            return add(self.radius)
        distances = [float((other - key).norm()) for other in self.keys]
        slot = distances.index(min(distances))
        if distances[slot] > self.radius + self.radii[slot]:
            return add(self.radius)
        if self._answer(label) == self._answer(self.labels[slot]):
            self.radii[slot] = max(self.radii[slot], distances[slot])
            return slot
        self.radii[slot] = distances[slot] / 2 - 1e-5
        return add(distances[slot] / 2)

    def _answer(self, label: Label) -> Any:
        return sum(label) / len(label) if self.released else [token for token in label if token >= 0]


class PlainWise(PlainGated):
    """`mask` is of the matrix's shape. Rows of an edit are read one by one; the text outside is read whole."""

    def __init__(
        self, model: nn.Module, module: str, activation: Callable[[Tensor], Tensor], mask: Tensor, **settings: Any
    ):
        super().__init__(model, module)
        self.activation, self.mask, self.settings = activation, mask, settings
        self.original = self.matrix.weight.detach().clone()
        self.side, self.least = self.original.clone(), float("inf")

    def edit(self, rows: Sequence[tuple[Tensor, int]], outside: Tensor) -> int:
        s = self.settings
        side, moved, last = self.side.requires_grad_(True), [torch.empty(0)], [float("inf"), float("inf")]
        optimizer = torch.optim.SGD([side], lr=s["lr"], weight_decay=s["weight_decay"])

        def put(x: Tensor, out: Tensor) -> Tensor:
            mine = self.product(side, x)
            moved[0] = (self.activation(out) - self.activation(mine)).norm(dim=-1).mean()
            return mine

        handle, taken = self.hooked(put), 0
        for _ in range(s["steps"]):
            losses, inside = [], []
            for ids, start in rows:
                length = ids.shape[1] - start
                losses.append(self.nll(ids, start) * length / (length + 1))
                inside.append(moved[0])
            self.model(input_ids=outside, use_cache=False)
            loss = torch.stack(losses).mean() + self._margins(torch.stack(inside), moved[0])
            distance = float(torch.stack(inside).detach().mean())
            if abs(last[-1] - last[-2]) <= 1e-4 and last[-1] <= 0.02:
                break
            optimizer.zero_grad()
            loss.backward()
            side.grad.mul_(self.mask)
            optimizer.step()
            last, taken = [last[-1], float(loss.detach())], taken + 1
            side.data = torch.minimum(torch.maximum(side.data, self.original - s["clamp"]), self.original + s["clamp"])
        handle.remove()
        self.side, self.least = side.detach(), min(self.least, distance)
        return taken

    def _margins(self, inside: Tensor, outside: Tensor) -> Tensor:
        alpha, beta, gamma = self.settings["margins"]
        parts = [outside - inside + gamma, (outside - alpha)[None], beta - inside]
        return sum((part[part > 0].mean() for part in parts if (part > 0).any()), start=torch.zeros(()))


class PlainMelo(PlainGated):
    """`module` routes; blocks are added to `adapted`. `blocks`: where each edit's A begin."""

    def __init__(
        self, model: nn.Module, module: str, adapted: Sequence[str], blocks: Sequence[Sequence[Tensor]], **settings: Any
    ):
        super().__init__(model, module)
        self.adapted = [model.get_submodule(name) for name in adapted]
        self.initial, self.settings = list(blocks), settings
        self.blocks: list[list[tuple[Tensor, Tensor]]] = []
        self.clusters: list[dict[str, Any]] = []

    def edit(self, ids: Tensor, start: int) -> int:
        s = self.settings
        key, number = self.seen(ids)[1][-1], len(self.blocks)
        self._place(key, sum(ids[0, start:].tolist()), number)
        pairs = [
            (a.clone().requires_grad_(True), a.new_zeros(a.shape[1], self._outputs(m)).requires_grad_(True))
            for a, m in zip(self.initial.pop(0), self.adapted, strict=True)
        ]
        optimizer = torch.optim.Adam([part for pair in pairs for part in pair], lr=s["lr"])
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.5)
        handles = [
            self.hooked(lambda x, out, a=a, b=b: out + s["scale"] * (x @ a @ b), module)
            for (a, b), module in zip(pairs, self.adapted, strict=True)
        ]
        for _ in range(s["steps"]):
            optimizer.zero_grad()
            self.nll(ids, start).backward()
            optimizer.step()
            schedule.step()
        for handle in handles:
            handle.remove()
        self.blocks.append([(a.detach(), b.detach()) for a, b in pairs])
        return s["steps"]

    @staticmethod
    def _outputs(module: nn.Module) -> int:
        return module.weight.shape[1 if type(module).__name__ == "Conv1D" else 0]

    def _place(self, key: Tensor, label: int, number: int) -> None:
        radius = self.settings["radius"]

        def add(radius: float) -> None:
            self.clusters.append({"center": key, "radius": radius, "label": label, "points": [(key, number)]})

        if not self.clusters:
            return add(radius)
        distances = [float((cluster["center"] - key).norm()) for cluster in self.clusters]
        distance = min(distances)
        near = self.clusters[distances.index(distance)]
        if distance > near["radius"] + radius:
            return add(radius)
        if near["label"] == label:
            near["points"].append((key, number))
            keys = torch.stack([point for point, _ in near["points"]])
            near["center"] = keys.mean(0)
            near["radius"] = max(radius, float((keys - near["center"]).norm(dim=-1).max()))
            return None
        near["radius"] = distance / 2 - 1e-5
        kept = [point for point in near["points"] if float((point[0] - near["center"]).norm()) <= near["radius"]]
        near["points"] = kept or [(near["center"], -1)]
        return add(distance / 2 + 1e-5)
