"""Diverse edit augmentation (KEDAS, "Diverse Edit Augmentation", Table 2): an edit stored in several wordings.

One file a source of wordings: rules.py (the embedded world's edits), given.py (a file), endpoint.py and local_model.py
(a language model is asked).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kedit.cases import Edit

QA = "qa"


@dataclass(frozen=True, slots=True)
class Form:
    """One wording of an edit, as it is stored, found and shown to the model."""

    name: str  # qa, declarative, paraphrased_1, paraphrased_2, paraphrased_3, reversed
    text: str


def qa(edit: Edit) -> Form:
    """Prompt and answer as they are (KEDAS Eq. 7)."""
    return Form(QA, f"{edit.prompt.rstrip()} {edit.target_new.strip()}")


def named(texts: Mapping[str, str]) -> list[Form]:
    """The forms of one edit, from their texts by name."""
    return [Form(name, text) for name, text in texts.items()]


class Augmentation:
    """A source of wordings besides the QA form."""

    def missing_inputs(self) -> Iterator[str]:
        """A sentence about each file, model or key that this source needs and does not find; nothing is loaded."""
        yield from ()

    def prepare(self, edits: Sequence[Edit]) -> None:
        """Once, before the first edit: all that the run will make, for what is better done in bulk."""

    def forms(self, edits: Sequence[Edit]) -> list[list[Form]]:
        """The wordings of each edit, in order; always the same for the same edit. Raises InputError if one has none."""
        raise NotImplementedError


def with_augmentations(edits: Sequence[Edit], augmentation: Augmentation | None) -> list[list[Form]]:
    """Each edit's QA form, and the wordings of the source, if there is one."""
    more = augmentation.forms(edits) if augmentation else [[] for _ in edits]
    return [[qa(edit), *forms] for edit, forms in zip(edits, more, strict=True)]
