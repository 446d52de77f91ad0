"""Where a subject stands in a prompt: by the characters it consists of, never by searching for its tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kedit.common.errors import InputError
from kedit.lm.text import Text

Occurrence = Literal["first", "last", "all"]


@dataclass(frozen=True, slots=True)
class SubjectSequence:
    """A token sequence, the columns of its subject's last token, and where it is asked to go on."""

    ids: list[int]
    at: list[int]  # ascending; one column for each occurrence that counts
    reads: list[int]  # columns whose prediction counts
    gold: list[int]  # what they should predict; empty if only the distribution counts

    @property
    def head(self) -> "SubjectSequence":
        """The sequence up to the last of these columns: nothing behind it reaches them."""
        return replace(self, ids=self.ids[: self.at[-1] + 1], reads=[], gold=[])


def ends(prompt: str, subject: str | None, occurrence: Occurrence) -> list[int]:
    """Where the subject's last character stands, for each of its occurrences that counts. Raises InputError where it
    has none."""
    wanted = (subject or "").strip()
    found = [at for at in range(len(prompt)) if wanted and prompt.startswith(wanted, at)]
    if not found:
        raise InputError(
            f"the subject {subject!r} is not in the prompt {prompt!r}, where the editor looks for it; fix the record, "
            "or choose an editor that needs no subject"
        )
    chosen = {"first": found[:1], "last": found[-1:], "all": found}[occurrence]
    return [at + len(wanted) - 1 for at in chosen]


def rows(
    text: Text, prompts: Sequence[str], at: Sequence[Sequence[int]], answers: Sequence[str] | None = None
) -> list[SubjectSequence]:
    """Token sequences of prompts whose subjects end at these characters. With answers they are to predict these
    answers' tokens, and end before the last; without, for what follows the subject, where they end."""
    if answers is None:
        found = [(ids, offsets, len(ids)) for ids, offsets in text.offsets(prompts)]
    else:
        pairs = text.pairs(prompts, answers)
        offsets_of = text.offsets(prompts, answers)
        found = [(pair.ids, offsets, pair.start) for pair, (_, offsets) in zip(pairs, offsets_of, strict=True)]
    made = []
    for (ids, offsets, start), characters in zip(found, at, strict=True):
        columns = [_token(offsets, character) for character in characters]
        reads = columns[-1:] if answers is None else list(range(start - 1, len(ids) - 1))
        made.append(SubjectSequence(ids[: max(reads[-1], columns[-1]) + 1], columns, reads, ids[start:]))
    return made


def _token(offsets: Sequence[tuple[int, int]], character: int) -> int:
    """The last token that holds (a part of) this character."""
    return max(i for i, (start, end) in enumerate(offsets) if start <= character < end)
