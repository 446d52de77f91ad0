"""The model that is edited: the only place that knows tokenisers, padding, devices and architectures."""

from kedit.lm.loading import load
from kedit.lm.model import LM, Generated, Route, Scored

__all__ = ["LM", "Generated", "Route", "Scored", "load"]
