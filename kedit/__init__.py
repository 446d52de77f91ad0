"""kedit: knowledge editing in language models. Edit, score, and compare with the papers.

From Python, without a config:

    from kedit import KDPO, Evaluator, FineTune, experiment, sequential, summary, world
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "CrossEntropy": "kedit.losses.cross_entropy",
    "Editor": "kedit.editors",
    "Evaluator": "kedit.evaluation.evaluator",
    "FineTune": "kedit.editors.finetune.per_edit",
    "InputError": "kedit.common.errors",
    "KDPO": "kedit.losses.kdpo",
    "LM": "kedit.lm",
    "blocks": "kedit.loop.settings",
    "experiment": "kedit.loop.runner",
    "incremental": "kedit.loop.settings",
    "load": "kedit.lm",
    "mass": "kedit.loop.settings",
    "sequential": "kedit.loop.settings",
    "single": "kedit.loop.settings",
    "summary": "kedit.results.scores",
}


def __getattr__(name: str) -> Any:
    """Names are imported when they are first used: `kedit --help` and tables need no torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'kedit' has no attribute {name!r}")
