"""What acts inside a pass besides the weights: interventions, adapters, soft prompts, and the variants of a group."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from kedit.lm.changes import Changes, no_suspension
from kedit.lm.dropout import Dropping
from kedit.lm.hooks import hook
from kedit.lm.intervention import Change, Intervention, Interventions, Pass
from kedit.lm.mixed_adapters import MixedAdapters
from kedit.lm.undo import UndoLog
from kedit.lm.variants import Variants, groups_of, room_for_variants


class Acting(UndoLog):
    """A model and everything that acts in its passes."""

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.interventions = Interventions(model)
        self.adapters = MixedAdapters(model)
        self.embedding: nn.Module = model.get_input_embeddings()
        self.variants: Variants | None = None  # inside `in_variants`
        self.dropping = Dropping()

    def intervene(self, module: str, change: Change, *, lost: str = "") -> None:
        """From now on, until `restore`, `change(pass, entered, output)` is what this module puts out, in every pass.

        Doing it twice with the same function changes nothing. `lost`: what a saved model lacks, in words.
        """
        one = Intervention(module, change, lost)
        self.model.get_submodule(module)  # raises AttributeError if there is none
        active = self.changes.interventions
        if one not in active:
            active.append(one)
            self.on_restore(partial(active.remove, one), [module], self.interventions.disabled)

    @property
    def acting_modules(self) -> list[str]:
        """Where interventions act, in any variant."""
        changes = [self.changes] if self.variants is None else self.variants.changes
        return [one.module for each in changes for one in each.interventions]

    @contextmanager
    def only_intervening(self, changes: Mapping[str, Change]) -> Iterator[None]:
        """Inside, these changes (by their modules) act, and no others."""
        active = self.changes.interventions
        self.changes.interventions = [Intervention(module, change) for module, change in changes.items()]
        try:
            yield
        finally:
            self.changes.interventions = active

    @contextmanager
    def without_interventions(self) -> Iterator[None]:
        """Inside, interventions are off; weights stay as they are."""
        with self.interventions.disabled():
            yield

    def adapt(self, name: str, folder: Any) -> None:
        """Put a low-rank adapter that peft has saved into the model, until `restore`; it reads the prompts whose Route
        names it, and no others. Nothing happens if one of this name is there. Variants share it."""
        if name in self.adapters:
            return
        if not self.adapters.active:
            self.on_restore(self.adapters.remove, ["adapters"], no_suspension, shared=True)
        self.adapters.add(name, folder)

    @contextmanager
    def passing(self, this: Pass) -> Iterator[None]:
        """Inside, one forward pass of the model: adapters, soft prompts, variants and interventions act on its rows."""
        adapters = self.adapters.reading([reading.adapter for reading in this.who])
        with adapters, self._prefixed(this), self._varied(this), self.interventions.hung(self._parts(this)):
            yield

    def _varied(self, this: Pass) -> AbstractContextManager[None]:
        """Rows are read by their variants."""
        if self.variants is None:
            return nullcontext()
        return self.variants.acting([reading.variant for reading in this.who])

    def _parts(self, this: Pass) -> list[tuple[Pass, slice, Sequence[Intervention]]]:
        """The pass with the interventions that act in it, by variant."""
        if self.variants is None or self.variants.current is not None:
            return [(this, slice(0, len(this.who)), self.changes.interventions)]
        groups = groups_of([reading.variant for reading in this.who])
        acting = [(group, self.variants.changes[group.place].interventions) for group in groups]
        parts = [(group, [self._for_variant(group.place, one) for one in active]) for group, active in acting if active]
        return [(this.of_variant(group.place, group.rows), group.rows, active) for group, active in parts]

    def _for_variant(self, variant: int, one: Intervention) -> Intervention:
        """The same, which finds what is attached to its variant."""

        def change(*given: Any) -> Tensor:
            assert self.variants is not None
            outer, self.changes = self.changes, self.variants.changes[variant]
            try:
                return one.change(*given)
            finally:
                self.changes = outer

        return replace(one, change=change)

    def _prefixed(self, this: Pass) -> AbstractContextManager[None]:
        """Soft prompts take the places that `with_prefix` left for them."""
        rows = [(i, r.prefix) for i, r in enumerate(this.who) if r.prefix is not None and not this.continues]
        if not rows:
            return nullcontext()
        first = this.real.long().argmax(-1)

        def put(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            output = output.clone()
            for i, prefix in rows:
                output[i, first[i] : first[i] + len(prefix)] = prefix.to(output)
            return output

        return hook(self.embedding.register_forward_hook(put))

    # --- variants -----------------------------------------------------------------------------------------------------

    @contextmanager
    def in_variants(self, n: int) -> Iterator[None]:
        """Inside, there are `n` variants of the model as it is now: what is done to one in its `scope` changes it
        alone, and each row of a pass is read by the variant that its route names. Nothing of them is left behind.

        One variant is the model itself, restored at the end.
        """
        if n == 1:
            yield
            return
        undos = len(self.changes.undo)
        self.variants = Variants(self.model, n, self.changes, self.dropping)
        try:
            yield
        finally:
            for variant in range(n):
                with self.scope(variant):
                    self.restore()
            self.variants = None
            self._run_undos(keep=undos)

    @contextmanager
    def scope(self, variant: int | None) -> Iterator[None]:
        """Inside, the model is this variant alone: its parameters take their places, nothing is copied. None: the model
        stays what it is."""
        if self.variants is None or variant is None:
            yield
            return
        variants, outer = self.variants, self.changes
        self.changes, variants.current = variants.changes[variant], variant
        for name in self.changes.originals:
            variants.values[name].put(variant)
        try:
            yield
        finally:
            for name in self.changes.originals:
                variants.values[name].put(None)
            variants.changes[variant], self.changes, variants.current = self.changes, outer, None

    def room_for_variants(self, variant_bytes: int) -> int:
        """How many variants fit the memory of the model's device, if each needs so much."""
        return room_for_variants(next(self.model.parameters()).device, variant_bytes)

    def hand_over_gradients(self) -> None:
        """After a backward pass: each variant's parameters have their own gradients."""
        if self.variants is not None:
            self.variants.hand_over_gradients()

    @property
    def _common_changes(self) -> Changes:
        return self.changes if self.variants is None else self.variants.outer

    @property
    def changed(self) -> list[str]:
        """Between scopes: what differs in any of the variants."""
        if self.variants is None or self.variants.current is not None:
            return super().changed
        found = [*self.variants.outer.names, *(name for changes in self.variants.changes for name in changes.names)]
        return list(dict.fromkeys(found))

    def _keep_original(self, name: str, parameter: nn.Parameter) -> None:
        if self.variants is None:
            super()._keep_original(name, parameter)
        else:
            self.changes.originals[name] = parameter.data
            self.variants.own(name, parameter, self._places(name))

    def _bring_back_original(self, name: str, original: Tensor) -> None:
        super()._bring_back_original(name, original)
        if self.variants is not None:
            self.variants.values[name].put(None)
