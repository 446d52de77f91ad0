"""Wordings from a file as far as it has them, the others from another source."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kedit.cases import Edit
from kedit.common.errors import InputError
from kedit.common.options import PathText
from kedit.data.missing_files import check_file
from kedit.editors.incontext.augmentation import Augmentation, Form
from kedit.editors.incontext.augmentation.from_file import GivenForms, key

OPTION = "editor.augmentation.path"


@dataclass(kw_only=True, eq=False)
class FileFirst(Augmentation):
    """The wordings that the file `path` has (read as GivenForms reads it; it may be absent, or None), and those of
    `otherwise` for edits that it does not have."""

    path: PathText | None
    otherwise: Augmentation
    _given: GivenForms | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.path is not None and Path(self.path).expanduser().is_file():
            self._given = GivenForms(path=self.path)

    def missing_inputs(self) -> Iterator[str]:
        """One sentence if there is no file and the other source cannot be asked either."""
        others = [] if self._given else list(self.otherwise.missing_inputs())
        if self.path is None or not others:
            yield from others
            return
        try:
            check_file(Path(self.path).expanduser(), OPTION, "editor/augmentation=off for the QA form alone")
        except InputError as error:
            yield f"{error} ({'; '.join(others)})"

    def prepare(self, edits: Sequence[Edit]) -> None:
        if new := self._not_given(edits):
            self.otherwise.prepare(new)

    def forms(self, edits: Sequence[Edit]) -> list[list[Form]]:
        new = self._not_given(edits)
        asked = dict(zip(map(key, new), self.otherwise.forms(new), strict=True)) if new else {}
        return [asked[key(edit)] if key(edit) in asked else self._of_file(edit) for edit in edits]

    def _not_given(self, edits: Sequence[Edit]) -> list[Edit]:
        return [edit for edit in edits if self._given is None or not self._given.has(edit)]

    def _of_file(self, edit: Edit) -> list[Form]:
        assert self._given is not None  # the source writes only what no file has
        return self._given.forms([edit])[0]
