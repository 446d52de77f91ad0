"""Several edited models over one set of frozen weights: each row of a batch is read by its own variant (DESIGN §12).

A parameter that one of B variants changes is kept as a stack [B, ...] beside the frozen one; a low-rank change of a
matrix as two stacked factors. The frozen layers read one batch. Where variants differ, the rows of each (they stand
together, sorted by variant) go through their own values: in one batched product if every variant has equally many
rows, else one after another. Weights are never gathered per row.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import psutil
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kedit.lm.changes import Changes
from kedit.lm.hooks import instead

MOST = 16  # side by side: more bring little


@dataclass(frozen=True, eq=False)
class LowRank:
    """Low-rank changes of one matrix, stacked over variants: x -> x Wᵀ + scale · (x Aᵀ) Bᵀ."""

    a: Float[Tensor, "b r in_"]
    b: Float[Tensor, "b out r"]
    scale: float = 1.0


@dataclass(frozen=True)
class Group:
    """The rows of one variant in a batch, and its place in the stacks."""

    place: int
    rows: slice


class Values:
    """One parameter's values in each of n variants: a stack [n, *shape], and views of it that can be trained apart.

    `places`: the modules that hold the parameter, and its name in each (several if it is tied).
    """

    def __init__(self, parameter: nn.Parameter, places: Sequence[tuple[nn.Module, str]], n: int):
        self.parameter, self.places = parameter, places
        self.stack = parameter.detach().expand(n, *parameter.shape).clone()
        self.parts = [nn.Parameter(part, requires_grad=False) for part in self.stack]
        self.batched = self.stack.device.type == "cuda"  # one product is faster there; on a CPU one after another is

    @property
    def together(self) -> Tensor | None:
        """The stack, to be used in one product; None where that is slower, or a part has other values for a while."""
        if not self.batched or any(p.data_ptr() != s.data_ptr() for p, s in zip(self.parts, self.stack, strict=True)):
            return None
        return self.stack.requires_grad_(self.parts[0].requires_grad)

    def put(self, variant: int | None) -> None:
        """Into the model: this variant's part; None: the parameter that all of them started from."""
        for module, leaf in self.places:
            module._parameters[leaf] = self.parameter if variant is None else self.parts[variant]

    def hand_over_gradient(self) -> None:
        """The stack's, to its parts."""
        if self.stack.grad is not None:
            for part, gradient in zip(self.parts, self.stack.grad, strict=True):
                part.grad = gradient
        self.stack.grad = None
        self.stack.requires_grad_(False)


class Variants:
    """`n` variants of a model, and what each has changed. In a scope (`LM.scope`) the model is one of them alone.

    `values`: of the parameters that any of them has changed, by name. `low_rank`: by the names of their modules.
    """

    def __init__(self, model: nn.Module, n: int, outer: Changes):
        self.model, self.n, self.outer = model, n, outer
        self.values: dict[str, Values] = {}
        self.low_rank: dict[str, LowRank] = {}
        self.changes = [Changes() for _ in range(n)]
        self.current: int | None = None  # inside a scope

    def own(self, name: str, parameter: nn.Parameter, places: Sequence[tuple[nn.Module, str]]) -> None:
        """From now on the current variant has this parameter for itself."""
        assert self.current is not None, "a variant is changed inside its scope only"
        if name not in self.values:
            self.values[name] = Values(parameter, places, self.n)
        self.values[name].put(self.current)

    def hand_over_gradients(self) -> None:
        """After a backward pass: what was trained in one product, to the parts."""
        for values in self.values.values():
            values.hand_over_gradient()

    def acting(self, who: Sequence[int]) -> AbstractContextManager[None]:
        """Inside, a pass over rows of these variants. In a scope all are of one, whose parameters the model has."""
        if self.current is not None:
            return acting(self.model, {}, self.low_rank, [Group(self.current, slice(0, len(who)))])
        return acting(self.model, self.values, self.low_rank, groups_of(who))


def room_for_variants(device: torch.device, variant_bytes: int) -> int:
    """How many variants fit: in half of a GPU's free memory, in a quarter of the machine's."""
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] // 2 if on_gpu else psutil.virtual_memory().available // 4
    return max(1, min(MOST, free // max(1, variant_bytes)))


def groups_of(who: Sequence[int]) -> list[Group]:
    """The rows of each variant, which stand together."""
    if any(later < earlier for earlier, later in pairwise(who)):
        raise ValueError("rows of a batch must be sorted by variant")
    found, begin = [], 0
    for end in range(1, len(who) + 1):
        if end == len(who) or who[end] != who[begin]:
            found.append(Group(who[begin], slice(begin, end)))
            begin = end
    return found


@contextmanager
def acting(
    model: nn.Module, values: Mapping[str, Values], low_rank: Mapping[str, LowRank], groups: Sequence[Group]
) -> Iterator[None]:
    """Inside, a pass over a batch with these groups of rows uses the values of their places."""
    leaves: dict[str, dict[str, Values]] = {}
    for name, held in values.items():
        module, _, leaf = name.rpartition(".")
        leaves.setdefault(module, {})[leaf] = held
    with ExitStack() as stack:
        for name in dict.fromkeys([*leaves, *low_rank]):
            own = model.get_submodule(name)
            forward = partial(_grouped, name, own, own.forward, leaves.get(name, {}), low_rank.get(name), groups)
            stack.enter_context(instead(own, forward))
        yield


def _grouped(
    name: str,
    module: nn.Module,
    forward: Callable[..., Tensor],
    leaves: Mapping[str, Values],
    low_rank: LowRank | None,
    groups: Sequence[Group],
    entered: Tensor,
) -> Tensor:
    """The module's output, each group of rows with its own values."""
    if len(entered) != groups[-1].rows.stop:
        raise RuntimeError(f"{name} does not keep the rows of a batch apart, so variants of it cannot share one")
    output = _dense(module, forward, leaves, groups, entered) if leaves else forward(entered)
    return output if low_rank is None else output + _low_rank(low_rank, groups, entered)


def _dense(
    module: nn.Module,
    forward: Callable[..., Tensor],
    leaves: Mapping[str, Values],
    groups: Sequence[Group],
    entered: Tensor,
) -> Tensor:
    if list(leaves) == ["weight"] and isinstance(module, nn.Linear | Conv1D):
        stack = leaves["weight"].together
        if stack is not None and _complete(groups, len(stack)):
            product = _batched(entered, stack if isinstance(module, Conv1D) else stack.transpose(1, 2))
            return product if module.bias is None else product + module.bias
    outputs = []
    for group in groups:
        with _replaced(module, {leaf: held.parts[group.place] for leaf, held in leaves.items()}):
            outputs.append(forward(entered[group.rows]))
    return torch.cat(outputs)


def _low_rank(change: LowRank, groups: Sequence[Group], entered: Tensor) -> Tensor:
    """The factors are small: where rows are not spread evenly, each row gets its own copy."""
    entered, a, b = entered.to(change.a.dtype), change.a, change.b
    if not _complete(groups, len(a)):
        place = [group.place for group in groups for _ in range(group.rows.stop - group.rows.start)]
        index = torch.tensor(place, device=a.device)
        a, b = a[index], b[index]
    return change.scale * _batched(_batched(entered, a.transpose(1, 2)), b.transpose(1, 2))


def _complete(groups: Sequence[Group], n: int) -> bool:
    """Whether the groups are all of n variants, with equally many rows."""
    sizes = {group.rows.stop - group.rows.start for group in groups}
    return len(sizes) == 1 and [group.place for group in groups] == list(range(n))


def _batched(entered: Float[Tensor, "n t i"], matrices: Float[Tensor, "b i o"]) -> Float[Tensor, "n t o"]:
    """Equally many consecutive rows for each matrix, in one product."""
    n, t, width = entered.shape
    return torch.bmm(entered.reshape(len(matrices), -1, width), matrices).reshape(n, t, -1)


@contextmanager
def _replaced(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    before = {leaf: module._parameters[leaf] for leaf in values}
    module._parameters.update(values)  # type: ignore[arg-type]  # as torch.func.functional_call does
    try:
        yield
    finally:
        module._parameters.update(before)
