"""The terminal: what it cannot show is written in letters that it can, and it may go away."""

import codecs
import io
import os
import sys
from collections.abc import Sequence
from unicodedata import normalize

from kedit.common.errors import InputError

HANDLER = "kedit.plain"
PLAIN = dict(zip("†⊕✓✗─…·±\u2013\u2014\u2018\u2019\u201c\u201d", "++vx-..~--''\"\"", strict=True))


def use_safe_output() -> None:
    """From here on stdout and stderr take any text, whatever their encoding is."""
    codecs.register_error(HANDLER, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """One ASCII character for each that cannot be encoded, so that columns keep their width."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_letter, error.object[error.start : error.end])), error.end


def _letter(character: str) -> str:
    plain = PLAIN.get(character, normalize("NFKD", character)[0])
    return plain if plain.isascii() else "?"


def terminals() -> list[int]:
    """Which of stdout and stderr are shown on a terminal."""
    return [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]


def leave_terminals(descriptors: Sequence[int]) -> None:
    """After a hangup: what is written there from now on goes nowhere, instead of failing."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)


def check_command_line(arguments: Sequence[str]) -> None:
    """Raises InputError if an argument holds letters that the locale's encoding does not have."""
    for argument in arguments:
        if any("\udc80" <= character <= "\udcff" for character in argument):
            raise InputError(
                f"{os.fsencode(argument)!r}: the locale's encoding {sys.getfilesystemencoding()} lacks these letters; "
                "set LC_ALL=C.UTF-8, or PYTHONUTF8=1"
            )
