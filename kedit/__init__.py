"""kedit: knowledge editing in language models. Edit, score, and compare with the papers.

From Python, without a config:

    from kedit import KDPO, Evaluator, FineTune, experiment, sequential, summary, world
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "CrossEntropy": "kedit.losses.cross_entropy",
    "Editor": "kedit.editors",
    "Evaluator": "kedit.evals",
    "FineTune": "kedit.editors.finetune",
    "InputError": "kedit.errors",
    "KDPO": "kedit.losses.kdpo",
    "LM": "kedit.lm",
    "blocks": "kedit.settings",
    "experiment": "kedit.loop",
    "incremental": "kedit.settings",
    "load": "kedit.lm",
    "mass": "kedit.settings",
    "sequential": "kedit.settings",
    "single": "kedit.settings",
    "summary": "kedit.scores",
}


def __getattr__(name: str) -> Any:
    """Names are imported when they are first used: `kedit --help` and tables need no torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'kedit' has no attribute {name!r}")
