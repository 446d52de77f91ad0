"""One kind of progress bar: live on a terminal, a line every half minute in a log file."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_HIDDEN: set[bool] = set()  # holds True if this process shows none


def hide_progress() -> None:
    """Show no bars in this process."""
    _HIDDEN.add(True)


def progress(items: Iterable[Any] | None = None, **kwargs: Any) -> tqdm:
    """tqdm with kedit's pace; the keywords are tqdm's."""
    pace = 0.2 if sys.stderr.isatty() else 30
    hidden = bool(_HIDDEN) or kwargs.pop("disable", False)
    return tqdm(items, mininterval=pace, maxinterval=60, **kwargs | {"disable": hidden})
