"""Run only what an edit can change: the layers from the first changed one on, from a recorded hidden state.

An editor that trains layer k changes nothing below it. What enters layer k is recorded in one pass; every later pass on
the same tokens skips the layers below and begins with the record, and where nothing of layer k changes but the MLP's
output matrix, with what enters that matrix. It is the model's own forward that runs, so masks, positions and the final
norm are its own, and the result is the same, bit for bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kedit.lm.anatomy import Anatomy
from kedit.lm.dropout import BatchDraws, Draws
from kedit.lm.hooks import entering, given, hook, instead
from kedit.lm.text import Batch, Pair

if TYPE_CHECKING:
    from kedit.lm.model import LM


@dataclass(frozen=True, slots=True, eq=False)
class LayerCache:
    """What a batch of tokens brings to the first layer that changes."""

    hidden: Tensor  # [n t d], what enters the layer
    residual: Tensor | None = None  # [n t d], what the MLP's result is added to; None where that is not all there is
    matrix_in: Tensor | None = None  # [n t f], what enters the MLP's output matrix

    def rows_of(self, rows: Int[Tensor, " m"]) -> "LayerCache":
        """The same for some rows of the batch."""
        parts = (self.hidden, self.residual, self.matrix_in)
        return LayerCache(*(None if part is None else part[rows.to(part.device)] for part in parts))  # type: ignore[arg-type]


class PartialForward:
    """The part of a model from layer `first` on (n_layers: the final norm); `matrix`: of that layer only the MLP's
    output matrix changes."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, first: int, matrix: bool = False):
        stack = [*map(anatomy.block.format, range(anatomy.n_layers)), anatomy.norm]
        self.layers = [model.get_submodule(name) for name in stack[: first + 1]]
        self.matrix = model.get_submodule(anatomy.mlp_out.format(first)) if matrix else None
        self.tuple = False  # does a layer return (hidden, ...)? seen in the first pass

    @contextmanager
    def recording(self) -> Iterator[list[LayerCache]]:
        """A pass of the body inside makes one LayerCache."""
        seen: dict[str, Any] = {"norms": []}
        made: list[LayerCache] = []
        layer = self.layers[-1]

        with ExitStack() as hooks:
            noting = layer.register_forward_pre_hook(
                lambda _, args, kwargs: seen.update(hidden=given(args, kwargs)), with_kwargs=True
            )
            hooks.enter_context(hook(noting))
            if self.matrix is not None:
                for norm in _norms(layer):
                    keep = norm.register_forward_pre_hook(lambda _, args: seen["norms"].append(args[0]))
                    hooks.enter_context(hook(keep))
                reading = self.matrix.register_forward_pre_hook(lambda _, args: seen.update(matrix_in=args[0]))
                hooks.enter_context(hook(reading))
            hooks.enter_context(hook(layer.register_forward_hook(partial(self._made, seen, made))))
            yield made

    def _made(
        self, seen: dict[str, Any], made: list[LayerCache], layer: nn.Module, args: tuple[Any, ...], output: Any
    ) -> None:
        self._note_form(layer, args, output)
        made.append(self._record(seen, output[0] if self.tuple else output))

    def _note_form(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.tuple = isinstance(output, tuple)

    @torch.no_grad()
    def entering(self, run: Callable[[], object]) -> Tensor:
        """What a pass brings to the layer, [n t d]; the pass goes no further."""
        with hook(self.layers[0].register_forward_hook(self._note_form)):
            return entering({"layer": self.layers[-1]}, run)["layer"]

    @torch.no_grad()
    def _record(self, seen: dict[str, Any], output: Tensor) -> LayerCache:
        """With the residual where the layer is found to be residual + matrix(x), exactly."""
        hidden = seen["hidden"].detach()
        if self.matrix is not None:
            added = self.matrix(seen["matrix_in"])
            for residual in reversed(seen["norms"]):
                if residual.shape == output.shape and torch.equal(residual + added, output):
                    return LayerCache(hidden, residual.detach(), seen["matrix_in"].detach())
        return LayerCache(hidden)

    @contextmanager
    def starting_from(self, record: LayerCache) -> Iterator[None]:
        """A pass of the body inside, on the recorded tokens, runs no layer below and begins with the record."""
        *below, layer = self.layers
        with ExitStack() as patches:
            for skipped in below:
                patches.enter_context(instead(skipped, self.returning(lambda hidden: hidden)))
            if record.residual is not None and self.matrix is not None:
                residual, matrix, matrix_in = record.residual, self.matrix, record.matrix_in
                patches.enter_context(instead(layer, self.returning(lambda _: residual + matrix(matrix_in))))
            else:
                begin = layer.register_forward_pre_hook(partial(_given_instead, record.hidden), with_kwargs=True)
                patches.enter_context(hook(begin))
            yield

    def returning(self, make: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        """A `forward` for a layer that is to put out `make` of what enters it."""
        return partial(self._returned, make)

    def _returned(self, make: Callable[[Tensor], Tensor], hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (make(hidden_states), None) if self.tuple else make(hidden_states)


def _given_instead(hidden: Tensor, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A layer's arguments, with `hidden` as the hidden state."""
    return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})


class TrainingForward:
    """Forward passes over batches while these parameters are trained: the layers below them are computed once.

    `draws`: of which variants dropout is on, in passes that gradients are asked of.
    """

    def __init__(self, lm: "LM", names: Sequence[str]):
        self.lm, self.tail = lm, lm.partial_forward(names)
        self.records: dict[Batch, LayerCache] = {}
        self.draws: dict[int, Draws | None] = {}
        self._drawn: dict[Batch, BatchDraws] = {}

    def logits(self, batch: Batch) -> Float[Tensor, "k v"]:
        """Like `lm.answer_logits`."""
        if not self.draws or not torch.is_grad_enabled():
            return self._logits(batch)
        if batch not in self._drawn:
            self._drawn[batch] = BatchDraws(batch, self.draws)
        with self.lm.dropping.drawing(self._drawn[batch]):
            return self._logits(batch)

    def _logits(self, batch: Batch) -> Float[Tensor, "k v"]:
        if self.tail is None:
            return self.lm.answer_logits(batch)
        if batch in self.records:
            with self.tail.starting_from(self.records[batch]):
                return self.lm.answer_logits(batch)
        with self.lm.using_cache(batch), self.tail.recording() as made:
            logits = self.lm.answer_logits(batch)
        [self.records[batch]] = made
        return logits

    def rows_of(self, batch: Batch, rows: Int[Tensor, " m"]) -> tuple[Batch, Int[Tensor, " l"]]:
        """Like `Batch.rows_of`; what was recorded for the rows is kept."""
        some, places = batch.rows_of(rows)
        if batch in self.records:
            self.records[some] = self.records.pop(batch).rows_of(rows)
        return some, places


class LowerLayerCache:
    """What token sequences bring to the first layer that edits change, kept within a budget of bytes.

    It is computed once for a run's questions, in batches that they alone determine, so that a continued run and one
    whose answers before editing are cached read the same numbers.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, budget: int):
        self.model, self.anatomy, self.budget = model, anatomy, budget
        self.first, self.bytes = 0, 0
        self.tail: PartialForward | None = None
        self._asked: list[Pair] = []
        self._kept: dict[tuple[int, ...], Tensor] = {}  # ids -> [t d]

    def begin(self, names: Sequence[str], pairs: Sequence[Pair]) -> bool:
        """Keep for these pairs what enters the first layer of these parameters; False where that is kept already."""
        first, asked = self.anatomy.first_layer(names), list(pairs)
        if (first, asked) == (self.first, self._asked):
            return False
        self.first, self._asked, self.bytes = first, asked, 0
        self._kept.clear()
        self.tail = PartialForward(self.model, self.anatomy, first) if first else None
        return self.tail is not None

    def add(self, batch: Batch, run: Callable[[], object]) -> None:
        """`run` is a pass over the batch; it is left where the layer begins."""
        if self.tail is None or self.bytes >= self.budget:
            return
        for pair, row, real in zip(batch.pairs, self.tail.entering(run), batch.mask, strict=True):
            hidden = row[real.to(row.device)].clone()
            size = hidden.numel() * hidden.element_size()
            if self.bytes + size <= self.budget:
                self._kept[tuple(pair.ids)] = hidden
                self.bytes += size

    @contextmanager
    def using(self, batch: Batch, changed: Sequence[str]) -> Iterator[None]:
        """A pass over the batch inside begins with what is kept; with the tokens where something below has changed."""
        below = bool(changed) and self.anatomy.first_layer(changed) < self.first
        kept = [self._kept.get(tuple(pair.ids)) for pair in batch.pairs]
        if self.tail is None or below or any(hidden is None for hidden in kept):
            yield
        else:
            with self.tail.starting_from(LayerCache(self._padded(batch, kept))):
                yield

    @staticmethod
    def _padded(batch: Batch, kept: Sequence[Any]) -> Tensor:
        hidden = kept[0].new_zeros(*batch.ids.shape, kept[0].shape[-1])
        hidden[batch.mask.to(hidden.device)] = torch.cat(list(kept))
        return hidden


def partial_forward_of(model: nn.Module, anatomy: Anatomy, names: Sequence[str]) -> PartialForward | None:
    """The tail that holds every parameter of these names; None where it is the whole model."""
    first = anatomy.first_layer(names)
    if not first:
        return None
    matrix = anatomy.mlp_out.format(first) + "."
    block = anatomy.block.format(first) + "."
    return PartialForward(
        model, anatomy, first, all(f"{name}.".startswith(matrix) for name in names if f"{name}.".startswith(block))
    )


def _norms(layer: nn.Module) -> list[nn.Module]:
    return [m for m in layer.modules() if "Norm" in type(m).__name__]
