"""Wordings of the embedded world's edits, by rule."""

from collections.abc import Sequence

from kedit.cases import Edit
from kedit.common.errors import InputError
from kedit.editors.incontext.augmentation import Augmentation, Form, named


class WorldRules(Augmentation):
    """The wordings are in kedit.world.wordings."""

    def prepare(self, edits: Sequence[Edit]) -> None:
        self.forms(edits)

    def forms(self, edits: Sequence[Edit]) -> list[list[Form]]:
        return [self._forms(edit) for edit in edits]

    def _forms(self, edit: Edit) -> list[Form]:
        from kedit.world.wordings import wordings

        texts = wordings(edit)
        if texts is None:
            raise InputError(
                f"editor/augmentation=world has no wordings of the edit {edit.prompt!r}, which is none of the embedded "
                "world's; choose file, endpoint or model, or off: each edit as it is"
            )
        return named(texts)
