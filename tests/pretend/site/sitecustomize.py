"""With this folder on PYTHONPATH every Python process starts on the pretend CUDA, also those that others start."""

import pretend  # noqa: F401
