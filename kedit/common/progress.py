"""One kind of progress bar: live on a terminal, a line every half minute in a log file."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable[Any] | None = None, **kwargs: Any) -> tqdm:
    """tqdm with kedit's pace; the keywords are tqdm's."""
    return tqdm(items, mininterval=0.2 if sys.stderr.isatty() else 30, maxinterval=60, **kwargs)
