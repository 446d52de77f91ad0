"""Errors that the user can correct."""

import errno
import re


class InputError(ValueError):
    """Something the user gave is wrong. The message says what was given, what is wrong and what to do; nothing else
    is shown."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAID = [*(f"os error {number}" for number in FULL), "database or disk is full"]  # by safetensors, by sqlite


def disk_is_full(error: BaseException | None) -> bool:
    """Whether this error, or what caused it, is that nothing more can be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(said in str(error) for said in _SAID):
            return True
        error = error.__cause__ or error.__context__
    return False


def named_in(sentence: str) -> str:
    """What a sentence about something missing is about: its first word that is a file, a variable or an option."""
    words = sentence.split()
    return next((word for word in words if re.search(r"\w[./=_]\w", word)), words[0]).rstrip(":;,")


def first_line(error: BaseException) -> str:
    """What an error says, without the explanations that libraries add below: its first line, and the second one if the
    first ends with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
