"""What standard fine-tuning trains: every edit with its examples, and the end of text behind their answers."""

from collections.abc import Sequence
from dataclasses import replace

from kedit.cases import Edit
from kedit.common.errors import InputError
from kedit.editors.finetune.base import Tuner
from kedit.lm import LM


class Composed(Sequence[Edit]):
    """Every edit followed by its examples; composed on demand."""

    def __init__(self, tuner: Tuner, edits: Sequence[Edit]):
        self.tuner, self.edits = tuner, edits
        self.per_edit = len(tuner.facts(edits[0]))

    def __len__(self) -> int:
        return len(self.edits) * self.per_edit

    def __getitem__(self, i: int) -> Edit:  # type: ignore[override]
        return self.tuner.facts(self.edits[i // self.per_edit])[i % self.per_edit]


def closed(lm: LM, facts: Sequence[Edit]) -> list[Edit]:
    """Facts with the end-of-text token behind their answers. Raises InputError if the tokenizer has none."""
    if not lm.text.closing:
        raise InputError("editor.append_eos=true: the tokenizer has no end-of-text token; set editor.append_eos=false")
    return [replace(fact, target_new=fact.target_new.strip() + lm.text.closing) for fact in facts]
