"""GRACE (Hartvigsen et al. 2023, arXiv 2211.11031): a codebook of keys, radii and values at one layer."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kedit.cases import Edit
from kedit.common.options import Count, PathText, Positive, Rate
from kedit.editors.finetune.base import finite
from kedit.editors.gated import EntryRow, given
from kedit.editors.gated.base import Cost, Gated
from kedit.editors.gated.codebook import Codebook, CodebookGate, Replacement, added, put_values
from kedit.editors.gated.gate import SAME, LabelMatch, labels_match, nearest
from kedit.editors.gated.store import Store, label
from kedit.editors.locate.subject_forward import SubjectForward, single
from kedit.editors.subject import SubjectSequence
from kedit.lm import LM, Pass
from kedit.lm.intervention import Change
from kedit.lm.matrices import widths_of
from kedit.lm.partial_forward import TrainingForward
from kedit.lm.text import Pair


@dataclass(kw_only=True, eq=False)
class GRACE(Gated):
    """A prompt whose key (what enters the module at the prompt's last token) lies within the radius of its nearest key
    of the codebook is answered with that key's value in the place of what the module puts out there.

    An edit's value is trained by Adam for `steps` steps on the answer's cross-entropy; it begins at random in [0, 1),
    or as the module's own `output`. A key farther than its nearest one's radius + `radius` is a new one, of that
    radius. A nearer one is served by the nearest key if it has the same answer, whose radius grows to reach it
    (`expand` moving_average: and whose key moves halfway); if not, it is a new one and both radii are half the
    distance. The same prompt edited again has the new answer.

    `initial_values`: a safetensors file whose tensor "values" [edits, width] is where the values begin instead.
    """

    name: ClassVar[str] = "grace"
    lost: ClassVar[str] = "GRACE's codebook"

    steps: Count
    lr: Rate
    radius: Positive
    expand: Literal["coverage", "moving_average"] = "coverage"
    start: Literal["random", "output"] = "random"
    initial_values: PathText | None = None
    replacement: Replacement = "replace_last"

    # what the released code does otherwise
    key: Literal["prompt", "last_edit"] = "prompt"  # last_edit: in every prompt, where the last edit's prompt ended
    label_match: LabelMatch = "tokens"
    labels_reversed: bool = False  # keys and labels are kept in opposite orders
    same_prompt: Literal["replace", "split"] = "replace"  # split: a second entry there, radii of half of no distance

    def __post_init__(self) -> None:
        given.check("editor.initial_values", self.initial_values)

    @property
    def prompt_decides(self) -> bool:  # type: ignore[override]
        return self.key == "prompt"

    def changes(self, lm: LM) -> Mapping[str, Change]:
        return {self.module(lm): CodebookGate(self.store(lm), self.replacement, self.key == "last_edit")}

    def learn(self, lm: LM, store: Store, edit: Edit) -> Cost:
        [pair] = lm.text.pairs([edit.prompt], [edit.target_new])
        with lm.only_intervening({}):
            key = lm.hidden([pair.ids], self.module(lm), at="all", end="in")[0][pair.start - 1]
            book, slot = self._place(lm, Codebook.read(store), key, pair, store.edits)
            value, loss = self._train(lm, pair, book.values[slot])
        book.with_values(slot, values=value, taught_by=store.edits).write(store)
        store.put(column=torch.tensor(pair.start - 1))
        return {"steps": self.steps, "loss": loss}

    def entries(self, state: Mapping[str, Tensor | str]) -> list[EntryRow]:
        saved = self.saved(state)
        if "keys" not in saved:
            return []
        columns = (saved[part] for part in ("taught_by", "radii", "keys", "values"))
        return [
            {"edit": int(edit), "radius": float(radius), "‖key‖": float(key.norm()), "‖value‖": float(value.norm())}
            for edit, radius, key, value in zip(*columns, strict=True)
        ]

    # --- where an edit goes ------------------------------------------------------------------------------------------

    def _place(
        self, lm: LM, book: Codebook | None, key: Float[Tensor, " k"], pair: Pair, number: int
    ) -> tuple[Codebook, int]:
        """The codebook with an entry that answers this key, made or widened if need be, and which one."""
        mine = label(pair.prompt, pair.answer, key.device)

        def new(book: Codebook | None, radius: float) -> tuple[Codebook, int]:
            made = added(book, key, radius, self._initial(lm, pair, number), mine, number)
            return made, len(made) - 1

        if book is None:
            return new(book, self.radius)
        found = nearest(book.keys, key[None])
        distance, slot = float(found[0]), int(found[1])
        if distance > self.radius + float(book.radii[slot]):
            return new(book, self.radius)
        owner = len(book) - 1 - slot if self.labels_reversed else slot
        if labels_match(self.label_match, mine, book.labels[owner]):
            return self._widened(book, slot, key, distance), slot
        if distance <= SAME * self.radius and self.same_prompt == "replace":
            again = book.with_label(owner, mine).with_values(slot, values=self._initial(lm, pair, number))
            return again, slot
        return new(book.with_values(slot, radii=distance / 2 - 1e-5), distance / 2)

    def _widened(self, book: Codebook, slot: int, key: Float[Tensor, " k"], distance: float) -> Codebook:
        """The ball of this entry reaches the key."""
        if distance <= float(book.radii[slot]):
            return book
        moved = {"keys": (book.keys[slot] + key) / 2} if self.expand == "moving_average" else {}
        return book.with_values(slot, radii=distance, **moved)

    def _initial(self, lm: LM, pair: Pair, number: int) -> Float[Tensor, " d"]:
        """Where the value of the edit of this number begins."""
        module = lm.model.get_submodule(self.module(lm))
        weight: Tensor = module.weight  # type: ignore[assignment]
        value = given.given("editor.initial_values", self.initial_values, "values", number)
        if value is None and self.start == "output":
            value = lm.hidden([pair.prompt], self.module(lm))[0][0]
        return (torch.rand(widths_of(module)[1]) if value is None else value).to(weight.device, torch.float32)

    # --- its value ---------------------------------------------------------------------------------------------------

    def _train(self, lm: LM, pair: Pair, start: Float[Tensor, " d"]) -> tuple[Float[Tensor, " d"], float]:
        """The value, and the loss before the last step."""
        value, loss = start.clone().requires_grad_(True), 0.0
        optimizer = torch.optim.Adam([value], lr=self.lr)
        passes = AtLastToken(lm, self, pair) if self.replacement == "replace_last" else AtManyTokens(lm, self, pair)
        with passes.inside():
            for _ in range(self.steps):
                nll = passes.loss(value)
                loss = finite(nll)
                optimizer.zero_grad()
                nll.backward()
                optimizer.step()
        return value.detach(), loss


def _nll(logits: Float[Tensor, "k v"], gold: Int[Tensor, " k"]) -> Float[Tensor, ""]:
    """The mean over answer tokens, on the device of the model's head."""
    return functional.cross_entropy(single(logits), gold.to(logits.device))


class AtLastToken:
    """Passes with a value at the prompt's last token. What stands before it and below the module never changes, and is
    computed once."""

    def __init__(self, lm: LM, editor: GRACE, pair: Pair):
        at = pair.start - 1
        row = SubjectSequence(pair.ids[:-1], [at], list(range(at, len(pair.ids) - 1)), pair.answer)
        self.forward = SubjectForward(lm, [row], editor.gated_layer(lm), [editor.part], replace=True)

    def inside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def loss(self, value: Float[Tensor, " d"]) -> Float[Tensor, ""]:
        return _nll(self.forward.logits([value[None]]), self.forward.block.gold)


class AtManyTokens:
    """Passes with a value at all tokens, or at all of the prompt but its last."""

    def __init__(self, lm: LM, editor: GRACE, pair: Pair):
        self.lm, self.batch, self.module = lm, lm.batch([pair]), editor.module(lm)
        self.replacement, self.value = editor.replacement, torch.empty(0)
        self.passes = TrainingForward(lm, [f"{self.module}.weight"])

    def inside(self) -> AbstractContextManager[None]:
        return self.lm.only_intervening({self.module: self._put})

    def _put(self, this: Pass, entered: Tensor, output: Tensor) -> Tensor:
        is_open = this.real.any(-1)
        return put_values(output, self.replacement, this, this.last_prompt_token(), self.value[None], is_open)

    def loss(self, value: Float[Tensor, " d"]) -> Float[Tensor, ""]:
        self.value = value
        return _nll(self.passes.logits(self.batch), self.batch.gold)
