"""GRACE's codebook: keys with radii, the values that they are answered with, and what happens near a key."""

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kedit.editors.gated.gate import Verdict, at_columns, within
from kedit.editors.gated.store import Store, with_entry, with_row
from kedit.lm import Pass

Replacement = Literal["replace_last", "replace_prompt", "replace_all"]


@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """n entries. Changes make a new codebook."""

    keys: Float[Tensor, "n k"]
    radii: Float[Tensor, " n"]
    values: Float[Tensor, "n d"]
    labels: Int[Tensor, "n t"]
    taught_by: Int[Tensor, " n"]  # the number of the edit that trained the value last

    @classmethod
    def read(cls, store: Store) -> "Codebook | None":
        """None if the store is empty."""
        if "keys" not in store:
            return None
        return cls(**{part.name: store[part.name] for part in fields(cls)})

    def write(self, store: Store) -> None:
        store.put(**{part.name: getattr(self, part.name) for part in fields(self)})

    def __len__(self) -> int:
        return len(self.keys)

    def with_values(self, slot: int, **parts: Tensor | float | int) -> "Codebook":
        """These parts of an entry are replaced."""
        return replace(self, **{part: with_entry(getattr(self, part), slot, value) for part, value in parts.items()})

    def with_label(self, slot: int, label: Int[Tensor, " t"]) -> "Codebook":
        labels = with_row(self.labels, label)
        return replace(self, labels=torch.cat([labels[:slot], labels[-1:], labels[slot + 1 : -1]]))


def added(book: Codebook | None, key: Tensor, radius: float, value: Tensor, label: Tensor, number: int) -> Codebook:
    """The codebook with one more entry, the last."""
    new = {
        "keys": key.float(),
        "radii": torch.tensor(radius, device=key.device),
        "values": value,
        "labels": label,
        "taught_by": torch.tensor(number, device=key.device),
    }
    return Codebook(**{part: with_row(getattr(book, part, None), row) for part, row in new.items()})


@dataclass(frozen=True)
class CodebookGate:
    """The intervention: rows whose key lies in a ball get its value in the place of what the module puts out.

    `column_of_last_edit`: the key is read, and the value put, where the last edit's prompt ended, in every row.
    """

    store: Store
    replacement: Replacement
    column_of_last_edit: bool = False

    def __call__(
        self, this: Pass, entered: Float[Tensor, "n t k"], output: Float[Tensor, "n t d"]
    ) -> Float[Tensor, "n t d"]:
        if this.continues:
            return self._continued(this, output)
        columns, verdict, values = self._decide(this, entered, output)
        this.memo["codebook.open"], this.memo["codebook.value"] = verdict.open, values
        return put_values(output, self.replacement, this, columns, values, verdict.open)

    def _decide(self, this: Pass, entered: Tensor, output: Tensor) -> tuple[Tensor, Verdict, Tensor]:
        """The column of each row's key, the verdict on it, and the value of its nearest entry."""
        verdict = Verdict.none(len(output), entered.device)
        columns, values = this.last_prompt_token(), output.new_zeros(len(output), output.shape[-1])
        book = Codebook.read(self.store)
        if book is not None:
            if self.column_of_last_edit:
                columns = self._column(this)
            found = within(book.keys, book.radii, at_columns(entered, columns))
            verdict = replace(found, open=found.open & (columns.to(found.open.device) >= 0))
            values = book.values.to(values)[found.slot]
        taught_by = [] if book is None else book.taught_by.tolist()
        verdict.note(this, taught_by.__getitem__)
        return columns, verdict, values

    def _column(self, this: Pass) -> Int[Tensor, " n"]:
        """Where the last edit's prompt ended, counted from each row's first token, or the row's last token."""
        first, length = this.real.long().argmax(-1), this.real.sum(-1)
        return first + torch.minimum(self.store["column"].to(length), length - 1)

    def _continued(self, this: Pass, output: Tensor) -> Tensor:
        """Later tokens of a generation: what is replaced is replaced before them, unless everything is."""
        if self.replacement != "replace_all":
            return output
        is_open, values = this.memo["codebook.open"], this.memo["codebook.value"]
        return torch.where(is_open.to(output.device)[:, None, None], values[:, None].to(output), output)


def put_values(
    output: Float[Tensor, "n t d"],
    replacement: Replacement,
    this: Pass,
    columns: Int[Tensor, " n"],
    values: Float[Tensor, "n d"],
    is_open: Bool[Tensor, " n"],
) -> Float[Tensor, "n t d"]:
    """With the rows' values: at the key's token, at all tokens before it, or at all tokens."""
    place = torch.arange(output.shape[1], device=columns.device)[None]
    chosen = {
        "replace_last": place == columns[:, None],
        "replace_prompt": this.real & (place < columns[:, None]),
        "replace_all": this.real,
    }[replacement]
    where = chosen.to(output.device) & is_open.to(output.device)[:, None]
    return torch.where(where[..., None], values[:, None].to(output), output)
