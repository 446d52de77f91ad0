"""Wordings from a file, and the file from wordings."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kedit.cases import Edit
from kedit.common.errors import InputError
from kedit.data.records import Record, read_records
from kedit.editors.incontext.augmentation import QA, Augmentation, Form, named

EditKey = tuple[str, str]


def key(edit: Edit) -> EditKey:
    """What the forms of an edit belong to: prompt and answer, without edge blanks."""
    return edit.prompt.strip(), edit.target_new.strip()


@dataclass(kw_only=True, eq=False)
class GivenForms(Augmentation):
    """`path`: json or jsonl, a record {"prompt": …, "target_new": …, "forms": {name: text, …}} for each edit."""

    path: str

    def __post_init__(self) -> None:
        self._file = Path(self.path).expanduser()
        self._forms: dict[EditKey, list[Form]] = {}
        for record in read_records(self._file, "editor.augmentation.path"):
            self._add(record)

    def _add(self, record: Record) -> None:
        forms = record.part("forms")
        texts = {name: forms.text(name).strip() for name in forms.data}
        if not texts or QA in texts:
            raise record.error("forms", f'is {texts}; give an object of texts by name, without "{QA}"')
        found = named(texts)
        if self._forms.setdefault((record.text("prompt").strip(), record.text("target_new").strip()), found) != found:
            raise InputError(f"{record.where}: another record gives other forms of the same edit; keep one of them")

    def has(self, edit: Edit) -> bool:
        return key(edit) in self._forms

    def prepare(self, edits: Sequence[Edit]) -> None:
        missing = [edit for edit in edits if not self.has(edit)]
        if missing:
            raise InputError(
                f"{self._file}: no forms of {len(missing)} of {len(edits)} edits, the first is {missing[0].prompt!r} "
                f"-> {missing[0].target_new!r}; add a record with this prompt and target_new"
            )

    def forms(self, edits: Sequence[Edit]) -> list[list[Form]]:
        self.prepare(edits)
        return [self._forms[key(edit)] for edit in edits]


def write(path: Path, edits: Sequence[Edit], forms: Sequence[Sequence[Form]]) -> None:
    """The file that GivenForms reads; each edit once."""
    lines = {}
    for edit, known in zip(edits, forms, strict=True):
        prompt, target = key(edit)
        texts = {form.name: form.text for form in known}
        lines[prompt, target] = json.dumps({"prompt": prompt, "target_new": target, "forms": texts}, ensure_ascii=False)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text("".join(f"{line}\n" for line in lines.values()), encoding="utf-8")
    os.replace(new, path)
