"""The model that is edited: the only place that knows tokenisers, padding, devices and architectures."""

from kedit.lm.intervention import Pass
from kedit.lm.loading import load
from kedit.lm.model import LM, Generated, Scored
from kedit.lm.route import Reader, Route

__all__ = ["LM", "Generated", "Pass", "Reader", "Route", "Scored", "load"]
