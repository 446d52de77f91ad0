"""The one error that is the user's to mend."""


class InputError(ValueError):
    """Something the user gave is wrong. The message says what was given, what is wrong and what to do; nothing else
    is shown."""


def first_line(error: BaseException) -> str:
    """What an error says, without the explanations that libraries add below."""
    return str(error).strip().split("\n")[0]
