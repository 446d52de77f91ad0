"""The one error that is the user's to mend."""


class InputError(ValueError):
    """Something the user gave is wrong. The message says what was given, what is wrong and what to do; nothing else
    is shown."""


def first_line(error: BaseException) -> str:
    """What an error says, without the explanations that libraries add below: its first line, and the second one if the
    first ends with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
