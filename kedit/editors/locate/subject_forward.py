"""Forward passes in which only the tokens from a subject's last token on are changed, from one layer on.

What is added to a module's output there changes nothing at earlier positions (attention is causal) and nothing in the
layers below. So the keys and values of the columns before, and what the columns from there on bring to the layer, are
computed once; every later pass runs those columns through the layers above alone. It is the model's own forward that
runs, with a cache that keeps what it holds.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from kedit.editors.subject import SubjectSequence
from kedit.lm.hooks import hook, instead
from kedit.lm.intervention import Pass
from kedit.lm.matrices import matrix_name
from kedit.lm.partial_forward import LayerCache, PartialForward

if TYPE_CHECKING:
    from kedit.lm.model import LM

OutputSite = Literal["mlp_out", "mlp_in", "attn_out", "block"]  # whose output is changed, see kedit.lm.anatomy


@dataclass(frozen=True, slots=True, eq=False)
class SuffixBatch:
    """Rows of tokens as a pass reads them: what stands before the first changed column is in `cache`."""

    ids: Int[Tensor, "n t"]
    kwargs: dict[str, Any]  # for the model's body: mask, positions, cache
    edit_row: Int[Tensor, " p"]  # rows of the changed places
    at: Int[Tensor, " p"]  # their columns
    read_row: Int[Tensor, " k"]  # rows of the places that are read
    reads: Int[Tensor, " k"]  # their columns
    gold: Int[Tensor, " k"]  # what should be predicted there, -1 where nothing is


class SubjectForward:
    """Forward passes over `rows` with something added to what the `sites` of `layer` put out at the rows' subjects.

    `keep`: columns before the first subject are computed once. `until`: prediction is read after this layer (through
    the final norm and the head), null: after the last. `replace`: it takes the place of what they put out.
    """

    def __init__(
        self,
        lm: "LM",
        rows: Sequence[SubjectSequence],
        layer: int,
        sites: Sequence[OutputSite],
        *,
        keep: bool = True,
        until: int | None = None,
        replace: bool = False,
    ):
        self.lm, self.layer, self.sites, self.until, self.replace = lm, layer, list(sites), until, replace
        self.original: dict[OutputSite, Float[Tensor, "p d"]] = {}  # their unchanged outputs there
        self.block = suffix_batch(lm, rows, keep)
        self.entered: Tensor  # [n t d], what the columns bring to the first layer that changes
        self._begin()

    @property
    def rows(self) -> int:
        return len(self.block.ids)

    def of(self, rows: Int[Tensor, " m"]) -> "SubjectForward":
        """The same, of some of the rows, in ascending order."""
        some = object.__new__(SubjectForward)
        some.__dict__ = self.__dict__ | {
            "block": _some(self.block, rows),
            "entered": self.entered[rows.to(self.entered.device)],
        }
        return some

    def logits(self, changes: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, "k v"]:
        """Predictions at the places that are read, with each row's change of each site added at its subject."""
        block, hidden = self.block, self.entered
        with ExitStack() as stack:
            if self.entry > self.layer:
                hidden = _added(hidden, block, self._difference(self.sites[0], changes[0]))
            else:
                for site, change in zip(self.sites, changes, strict=True):
                    stack.enter_context(self._adding(site, change))
            stack.enter_context(self.tail.starting_from(LayerCache(hidden)))
            for above in range(self.until + 1 if self.until is not None else 1 << 30, self.lm.anatomy.n_layers):
                module = self.lm.model.get_submodule(self.lm.anatomy.block.format(above))
                stack.enter_context(instead(module, self.tail.returning(lambda passed: passed)))
            states = self.lm.body(input_ids=block.ids, **block.kwargs)[0]
        return self.lm.head(_at(states, block.read_row, block.reads))

    def _begin(self) -> None:
        """Find where the changes enter, and what the columns bring there."""
        matrix = self.sites == ["mlp_out"]
        below = PartialForward(self.lm.model, self.lm.anatomy, self.layer, matrix)
        above = PartialForward(self.lm.model, self.lm.anatomy, self.layer + 1)
        if self.sites != ["block"] and not matrix:
            self.tail, self.entry = below, self.layer
            self.entered = below.entering(self._run)
            return
        with below.recording() as made, self._noting(self.sites[0]):
            self.entered = above.entering(self._run)
        self.tail, self.entry = above, self.layer + 1
        if matrix and made[0].residual is None:  # what the matrix puts out is not simply added to the residual stream
            self.tail, self.entry, self.entered = below, self.layer, made[0].hidden
            below.tuple = above.tuple

    @torch.no_grad()
    def _run(self) -> None:
        self.lm.body(input_ids=self.block.ids, **self.block.kwargs)

    def _difference(self, site: OutputSite, change: Float[Tensor, "n d"]) -> Float[Tensor, "p d"]:
        """What is added at the changed places."""
        wanted = change[self.block.edit_row.to(change.device)]
        return wanted - self.original[site].to(wanted) if self.replace else wanted

    def _site(self, site: OutputSite) -> nn.Module:
        if site == "block":
            return self.lm.model.get_submodule(self.lm.anatomy.block.format(self.layer))
        return self.lm.model.get_submodule(matrix_name(self.lm.model, self.lm.anatomy, site, self.layer))

    @contextmanager
    def _noting(self, site: OutputSite) -> Iterator[None]:
        """Keep what the site puts out at the changed places."""
        with hook(self._site(site).register_forward_hook(partial(self._note, site))):
            yield

    def _note(self, site: OutputSite, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        self.original[site] = _at(hidden, self.block.edit_row, self.block.at).detach()

    @contextmanager
    def _adding(self, site: OutputSite, change: Float[Tensor, "n d"]) -> Iterator[None]:
        """A pass inside adds the change; the first one also notes what was there."""
        with hook(self._site(site).register_forward_hook(partial(self._add, site, change))):
            yield

    def _add(
        self, site: OutputSite, change: Tensor, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        if site not in self.original:
            self.original[site] = _at(output, self.block.edit_row, self.block.at).detach()
        return _added(output, self.block, self._difference(site, change))


class _Kept(DynamicCache):
    """Keys and values of columns that do not change: passes read them and leave nothing behind."""

    def __init__(self, kept: Sequence[tuple[Tensor, Tensor]]):
        super().__init__(kept)
        self.kept = list(kept)  # [n heads before d], of each layer

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        keys, values = self.kept[layer_idx]
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    def of(self, rows: Int[Tensor, " m"]) -> "_Kept":
        return _Kept([(keys[rows.to(keys.device)], values[rows.to(keys.device)]) for keys, values in self.kept])


def suffix_batch(lm: "LM", rows: Sequence[SubjectSequence], keep: bool) -> SuffixBatch:
    """Rows with their first changed columns one below the other, and what stands before in a cache."""
    lm.check_length(max(len(row.ids) for row in rows))
    first = [row.at[0] if keep else 0 for row in rows]
    before, length = max(first), max(len(row.ids) - skip for row, skip in zip(rows, first, strict=True))
    ids = torch.full((len(rows), length), lm.text.pad)
    for i, (row, skip) in enumerate(zip(rows, first, strict=True)):
        ids[i, : len(row.ids) - skip] = torch.tensor(row.ids[skip:])
    kwargs: dict[str, Any] = {"use_cache": False}
    if before:
        kwargs = _prefixed(lm, [row.ids[:skip] for row, skip in zip(rows, first, strict=True)], before, length)

    def places(pick: Callable[[SubjectSequence], Sequence[int]]) -> tuple[Tensor, Tensor]:
        found = [(i, at - first[i]) for i, row in enumerate(rows) for at in pick(row)]
        both = torch.tensor(found, dtype=torch.long, device=lm.device).reshape(-1, 2)
        return both[:, 0], both[:, 1]

    gold = [token for row in rows for token in (row.gold or [-1] * len(row.reads))]
    return SuffixBatch(
        ids.to(lm.device),
        kwargs,
        *places(lambda row: row.at),
        *places(lambda row: row.reads),
        torch.tensor(gold, dtype=torch.long, device=lm.device),
    )


@torch.no_grad()
def _prefixed(lm: "LM", prefixes: Sequence[list[int]], before: int, length: int) -> dict[str, Any]:
    """What a pass over the columns behind these prefixes is given: their keys and values, masks and positions."""
    ids = torch.tensor([[lm.text.pad] * (before - len(p)) + p for p in prefixes], device=lm.device)
    real = torch.tensor([[0] * (before - len(p)) + [1] * len(p) for p in prefixes], device=lm.device)
    cache: Any = DynamicCache()
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    inputs = {"input_ids": ids, "attention_mask": real, "position_ids": positions}
    lm.body(Pass.over(ids, real), **inputs, past_key_values=cache, use_cache=True)
    pads = real[:, None, :, None] == 0
    layers = [
        (layer.keys.masked_fill(pads.to(layer.keys.device), 0), layer.values.masked_fill(pads.to(layer.keys.device), 0))
        for layer in cache.layers  # a row of pads alone may hold anything, and 0 times anything must be 0
    ]
    lengths = torch.tensor([len(p) for p in prefixes], device=lm.device)
    return {
        "attention_mask": torch.cat([real, real.new_ones(len(prefixes), length)], dim=1),
        "position_ids": lengths[:, None] + torch.arange(length, device=lm.device),
        "past_key_values": _Kept(layers),
        "use_cache": True,
    }


def _some(block: SuffixBatch, rows: Int[Tensor, " m"]) -> SuffixBatch:
    """The same for some of the rows."""
    kwargs = {
        name: value.of(rows) if isinstance(value, _Kept) else value[rows] if isinstance(value, Tensor) else value
        for name, value in block.kwargs.items()
    }
    place = torch.full((len(block.ids),), -1, device=block.ids.device)
    place[rows] = torch.arange(len(rows), device=block.ids.device)
    changed, read = place[block.edit_row] >= 0, place[block.read_row] >= 0
    return replace(
        block,
        ids=block.ids[rows],
        kwargs=kwargs,
        edit_row=place[block.edit_row[changed]],
        at=block.at[changed],
        read_row=place[block.read_row[read]],
        reads=block.reads[read],
        gold=block.gold[read],
    )


def _at(hidden: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """At these places, on whatever device the hidden state is."""
    return hidden[row.to(hidden.device), col.to(hidden.device)]


def _added(hidden: Tensor, block: SuffixBatch, added: Float[Tensor, "p d"]) -> Tensor:
    """With this at the changed places."""
    place = block.edit_row.to(hidden.device), block.at.to(hidden.device)
    return hidden.index_put(place, added.to(hidden), accumulate=True)


def single(values: Tensor) -> Tensor:
    """In single precision at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
