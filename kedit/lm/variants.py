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
from jaxtyping import Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kedit.lm.changes import Changes
from kedit.lm.dropout import Dropping
from kedit.lm.hooks import instead
from kedit.lm.low_rank import LowRank, Stack, batched
from kedit.lm.matrices import widths_of

MOST = 16  # side by side: more bring little
KNOWN = 64  # kinds of batches whose rows are remembered


@dataclass(frozen=True)
class Group:
    """The rows of one variant in a batch, and its place in the stacks."""

    place: int
    rows: slice


@dataclass(frozen=True, eq=False)
class Rows:
    """The variants of a batch's rows: sorted, on the host and as a tensor; what training drops of them."""

    places: Sequence[int]
    groups: Sequence[Group]
    index: Int[Tensor, " n"]
    dropping: Dropping


class Values(Stack):
    """One parameter's values in each of n variants. `places`: the modules that hold the parameter, and its name in each
    (several if it is tied)."""

    def __init__(self, parameter: nn.Parameter, places: Sequence[tuple[nn.Module, str]], n: int):
        super().__init__(parameter.detach().expand(n, *parameter.shape).clone())
        self.parameter, self.places = parameter, places
        self.batched = self.stack.device.type == "cuda"  # one product is faster there; on a CPU one after another is

    @property
    def together(self) -> Tensor | None:
        """The stack, to be used in one product; None where that is slower, or a part has other values for a while."""
        return self.whole() if self.batched and self.is_whole else None

    def put(self, variant: int | None) -> None:
        """Into the model: this variant's part; None: the parameter that all of them started from."""
        for module, leaf in self.places:
            module._parameters[leaf] = self.parameter if variant is None else self.parts[variant]


class Variants:
    """`n` variants of a model, and what each has changed. In a scope (`LM.scope`) the model is one of them alone.

    `values`: of the parameters that any of them has changed, by name. `low_rank`: by the names of their modules.
    """

    def __init__(self, model: nn.Module, n: int, outer: Changes, dropping: Dropping):
        self.model, self.n, self.outer, self.dropping = model, n, outer, dropping
        self.values: dict[str, Values] = {}
        self.low_rank: dict[str, LowRank] = {}
        self.changes = [Changes() for _ in range(n)]
        self.current: int | None = None  # inside a scope
        self._rows: dict[tuple[int, ...], Rows] = {}

    def own(self, name: str, parameter: nn.Parameter, places: Sequence[tuple[nn.Module, str]]) -> None:
        """From now on the current variant has this parameter for itself."""
        assert self.current is not None, "a variant is changed inside its scope only"
        if name not in self.values:
            self.values[name] = Values(parameter, places, self.n)
        self.values[name].put(self.current)

    def own_low_rank(self, matrix: str, rank: int, scale: float, dropout: float, dtype: torch.dtype) -> LowRank:
        """From now on the current variant may change this matrix (the name of a module) by its part of these factors;
        they are zero."""
        assert self.current is not None, "a variant is changed inside its scope only"
        if matrix not in self.low_rank:
            module = self.model.get_submodule(matrix)
            self.low_rank[matrix] = LowRank(module, self.n, widths_of(module), rank, scale, dropout, dtype)
        held = self.low_rank[matrix]
        held.users.add(self.current)
        return held

    @torch.no_grad()
    def drop_low_rank(self, variant: int, matrices: Sequence[str]) -> None:
        """This variant has no low-rank changes of these matrices any more."""
        for matrix in matrices:
            held = self.low_rank[matrix]
            held.b.parts[variant].zero_()
            held.users.discard(variant)
            if not held.users:
                del self.low_rank[matrix]

    def hand_over_gradients(self) -> None:
        """After a backward pass: what was trained in one product, to the parts."""
        factors = (factor for held in self.low_rank.values() for factor in (held.a, held.b))
        for stack in (*self.values.values(), *factors):
            stack.hand_over_gradient()

    def acting(self, who: Sequence[int]) -> AbstractContextManager[None]:
        """Inside, a pass over rows of these variants. In a scope all are of one, whose parameters the model has."""
        if self.current is not None:
            return acting(self.model, {}, self.low_rank, self._rows_of([self.current] * len(who)))
        return acting(self.model, self.values, self.low_rank, self._rows_of(who))

    def _rows_of(self, who: Sequence[int]) -> Rows:
        """Made once for all passes over such rows: nothing is copied from the host inside a training's steps."""
        key = tuple(who)
        if key not in self._rows:
            if len(self._rows) >= KNOWN:
                self._rows.clear()
            index = torch.tensor(key, device=next(self.model.parameters()).device)
            self._rows[key] = Rows(key, groups_of(key), index, self.dropping)
        return self._rows[key]


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
    model: nn.Module, values: Mapping[str, Values], low_rank: Mapping[str, LowRank], rows: Rows
) -> Iterator[None]:
    """Inside, a pass over a batch with these rows uses the values of their variants."""
    leaves: dict[str, dict[str, Values]] = {}
    for name, held in values.items():
        module, _, leaf = name.rpartition(".")
        leaves.setdefault(module, {})[leaf] = held
    with ExitStack() as stack:
        for name in dict.fromkeys([*leaves, *low_rank]):
            own = model.get_submodule(name)
            forward = partial(_grouped, name, own, own.forward, leaves.get(name, {}), low_rank.get(name), rows)
            stack.enter_context(instead(own, forward))
        yield


def _grouped(
    name: str,
    module: nn.Module,
    forward: Callable[..., Tensor],
    leaves: Mapping[str, Values],
    low_rank: LowRank | None,
    rows: Rows,
    entered: Tensor,
) -> Tensor:
    """The module's output, each group of rows with its own values."""
    if len(entered) != len(rows.places):
        raise RuntimeError(f"{name} does not keep the rows of a batch apart, so variants of it cannot share one")
    output = _dense(module, forward, leaves, rows.groups, entered) if leaves else forward(entered)
    return output if low_rank is None else output + low_rank.added(entered, rows.places, rows.index, rows.dropping)


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
            product = batched(entered, stack if isinstance(module, Conv1D) else stack.transpose(1, 2))
            return product if module.bias is None else product + module.bias
    outputs = []
    for group in groups:
        with _replaced(module, {leaf: held.parts[group.place] for leaf, held in leaves.items()}):
            outputs.append(forward(entered[group.rows]))
    return torch.cat(outputs)


def _complete(groups: Sequence[Group], n: int) -> bool:
    """Whether the groups are all of n variants, with equally many rows."""
    sizes = {group.rows.stop - group.rows.start for group in groups}
    return len(sizes) == 1 and [group.place for group in groups] == list(range(n))


@contextmanager
def _replaced(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    before = {leaf: module._parameters[leaf] for leaf in values}
    module._parameters.update(values)  # type: ignore[arg-type]  # as torch.func.functional_call does
    try:
        yield
    finally:
        module._parameters.update(before)
