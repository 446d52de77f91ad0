"""Editor: the interface of every knowledge-editing method."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from kedit.cases import Case, Edit
from kedit.lm import LM

Outcome = Mapping[str, float | int] | FloatingPointError  # what an edit reports, or why it failed


@dataclass(frozen=True, eq=False)
class Job:
    """One of several edits that are made side by side, each in its own variant of the model and by its own fork of the
    editor. `seed` seeds the global generators for it. variant None: the model as it is."""

    editor: Any
    edits: Sequence[Edit]
    variant: int | None = None
    seed: Callable[[], None] = lambda: None

    def alone(self, lm: LM) -> Outcome:
        """The edit, made while the model is this variant alone."""
        with lm.scope(self.variant):
            self.seed()
            try:
                return self.editor.edit(lm, self.edits)
            except FloatingPointError as failure:
                return failure


class Editor:
    """Turns edits into changes of an LM. Editors never evaluate, restore, or read configs, and never see a probe."""

    needs_train: ClassVar[bool] = False  # does `fit` learn from training cases?
    needs_subject: ClassVar[bool] = False  # must an edit's subject be a span of its prompt?
    needs_locality_prompt: ClassVar[bool] = False  # does `edit` need each case's first locality prompt? Captions say so
    reports_steps: ClassVar[bool] = False  # does `edit` call `on_step`?
    side_by_side: bool = True  # can edits be made in several variants of a model (LM.in_variants)?
    keeps_adapter: ClassVar[bool] = False  # is an adapter of all edits in the model afterwards, to be saved alone?
    prompt_decides: ClassVar[bool] = True  # is what a prompt is read with decided by it alone, not by answer or batch?
    forgets_some: ClassVar[bool] = False  # may later edits leave an earlier one unread, by design?
    least_gain: ClassVar[float] = 0.1  # nats by which an edit's answer becomes likelier, at least; -inf: by design
    scratch: Path | None = None  # where a long edit may keep what it needs to continue after a kill; emptied after it

    # where somebody listens: called after each optimiser step with its number (from 1) and the loss before it
    on_step: Callable[[int, float], None] | None = None

    # where somebody listens: called while `fit` trains with how far it has come, what that gives, and the seconds left
    on_training: Callable[[Mapping[str, float | int]], None] | None = None

    def edited_parameters(self, lm: LM) -> Sequence[str]:
        """Names of the parameters that edits will change, where that is known beforehand: nothing that lies below
        them is computed twice."""
        return ()

    def missing_inputs(self) -> Iterator[str]:
        """A sentence about each file and model that `prepare` and `fit` would not find; nothing is loaded."""
        yield from ()

    def prepare(self, edits: Sequence[Edit]) -> None:
        """Once, before `fit`: all edits that the run will make, for what is made of each alone, but better in bulk."""

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        """Once, before the first edit, on the pristine model: statistics, alignment, hypernetworks."""

    def fit_report(self) -> Mapping[str, Any]:
        """What `fit` found that a reader of the results wants to know, JSON-able; it is kept with the first step."""
        return {}

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        """Change `lm` in place, on top of earlier edits; several edits are made together. `edit(lm, [])` changes
        nothing.

        Returns numbers worth keeping about it ("steps", "loss"). Raises FloatingPointError when it went wrong
        numerically: the caller undoes this edit. Randomness comes from the global generators, which the caller seeds
        for each step.
        """
        raise NotImplementedError

    def fork(self) -> "Editor":
        """An editor that has learnt the same in `fit`, but no edit yet; the two know nothing of each other's edits."""
        other = copy(self)
        other.reset()
        return other

    def edit_side_by_side(self, lm: LM, jobs: Sequence[Job]) -> list[Outcome]:
        """`edit` for every job, whose editors are forks of this one; each changes its own variant of the model, as if
        it were made alone."""
        return [job.alone(lm) for job in jobs]

    def variant_bytes(self, lm: LM) -> int:
        """What an edit in a variant of its own needs of the device's memory, besides the model and the batch."""
        return sum(p.numel() * p.element_size() for p in map(lm.parameter, self.edited_parameters(lm)))

    def reset(self) -> None:
        """Forget edits, keep what `fit` learnt; the caller restores the LM."""

    def state(self) -> dict[str, Tensor | str]:
        """What edits taught the editor besides the parameters that LM tracks (which LM saves itself)."""
        return {}

    def load_state(self, lm: LM, state: Mapping[str, Tensor | str]) -> None:
        """Continue from a saved `state`; what `lm` tracks is loaded already."""
