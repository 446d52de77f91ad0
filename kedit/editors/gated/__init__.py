"""Memories that act inside a pass: store x gate x effect (DESIGN §11). GRACE, MELO, WISE and SERAC."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

EntryRow = dict[str, Any]  # one entry's values, by column; "edit": the number of the edit that taught it


class HasEntries(ABC):
    """An editor whose saved state is a list of entries that can be shown without a model."""

    @abstractmethod
    def entries(self, state: Mapping[str, Tensor | str]) -> list[EntryRow]:
        """From what a run has saved of the LM and of the editor."""
