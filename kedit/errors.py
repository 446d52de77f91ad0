"""The one error that is the user's to mend."""


class InputError(ValueError):
    """Something the user gave is wrong. The message says what was given, what is wrong and what to do; nothing else
    is shown."""
