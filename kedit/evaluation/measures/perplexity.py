"""Perplexity of a text that no edit is about: cheap, and it jumps when a model collapses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedit.common.errors import InputError
from kedit.common.options import PathText
from kedit.evaluation.measures import Measure, Measurement, row
from kedit.lm import LM


class Perplexity(Measure):
    """exp of the mean NLL of a text's tokens (`LM.perplexity`). `path`: a text file; None: the dataset's own text."""

    def __init__(self, path: PathText | None = None):
        self.path = path

    def prepare(self) -> None:
        self._text()

    def _text(self) -> str:
        if self.path is None:
            return ""
        try:
            text = Path(self.path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"eval.measures.perplexity.path={self.path} cannot be read ({error}); give a UTF-8 text file, or null "
                "for the dataset's own text"
            ) from error
        if not text.strip():
            raise InputError(f"eval.measures.perplexity.path={self.path} is empty; give a file with text")
        return text

    def description(self) -> Mapping[str, Any]:
        return {"perplexity": {"text": self.path or "the dataset's held-out text"}}

    def __call__(self, lm: LM, held_out: str) -> Measurement:
        text = self._text() or held_out
        if not text:
            return Measurement()
        value = round(lm.perplexity(text), 4)
        return Measurement([row("perplexity", "perplexity", "perplexity", value)], {"perplexity": value})
