"""Texts that an edit is not about: what WISE keeps out of a side memory's scope while it trains one."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from kedit.cases import Case, Edit
from kedit.common.errors import InputError
from kedit.common.options import PathText, Seed, Text

UNRELATED = ("locality", "neighborhood")  # kinds of questions that an edit must not change


class LocPrompts:
    """One text for each edit; None if there is none."""

    needs_train: ClassVar[bool] = False
    needs_locality_prompt: ClassVar[bool] = False  # must the loader hand over each case's first locality prompt?

    def fit(self, train: Sequence[Case]) -> None:
        """Once, with the training cases."""

    def of(self, edit: Edit, number: int) -> str | None:
        """For an edit, and its number among those in the model."""
        raise NotImplementedError


@dataclass(kw_only=True)
class FromTraining(LocPrompts):
    """A locality question of the training cases, drawn for each edit; with its answer (`answers`), as WISE's authors
    have it for ZsRE. No question that a test asks: see kedit.data."""

    answers: bool = True
    seed: Seed = 0
    needs_train: ClassVar[bool] = True
    _texts: list[str] = field(default_factory=list, init=False, repr=False)

    def fit(self, train: Sequence[Case]) -> None:
        """Raises InputError if no training case has a locality question."""
        probes = [probe for case in train for probe in case.probes if probe.kind in UNRELATED and probe.answers]
        texts = (f"{p.prompt.rstrip()} {p.answers[0].strip()}" if self.answers else p.prompt for p in probes)
        self._texts = list(dict.fromkeys(texts))
        if not self._texts:
            raise InputError(
                f"none of the {len(train)} training cases has a locality question, which WISE needs as a text that an "
                "edit is not about; give other cases with dataset.train_path=FILE, or texts with "
                "editor/loc_prompts=given editor.loc_prompts.path=FILE"
            )

    def of(self, edit: Edit, number: int) -> str:
        return random.Random(f"{self.seed}/{edit.prompt}/{edit.target_new}").choice(self._texts)


@dataclass(kw_only=True)
class Given(LocPrompts):
    """These texts, or the lines of a file: the i-th for the i-th edit in the model, from the beginning again if there
    are fewer."""

    texts: Sequence[Text] = ()
    path: PathText | None = None

    def __post_init__(self) -> None:
        if self.path is not None:
            self.texts = self._lines(Path(self.path).expanduser())
        if not self.texts:
            raise InputError(
                "editor/loc_prompts=given: no text; give some with editor.loc_prompts.texts=[...], or a file with one "
                "on each line with editor.loc_prompts.path=FILE"
            )

    def of(self, edit: Edit, number: int) -> str:
        return self.texts[number % len(self.texts)]

    def _lines(self, path: Path) -> list[str]:
        if not path.is_file():
            raise InputError(f"editor.loc_prompts.path={path}: no such file; give one with a text on each line")
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


@dataclass(kw_only=True)
class OfTheCase(LocPrompts):
    """The first locality prompt of the edited case itself, as EasyEdit's WISE takes it: a prompt that the test asks.
    The loader hands it over, and captions say so. A case without one has none."""

    needs_locality_prompt: ClassVar[bool] = True

    def of(self, edit: Edit, number: int) -> str | None:
        return edit.loc_prompt
