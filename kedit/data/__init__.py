"""Datasets: one file a form; each turns records into cases, or says which record is wrong and how to mend it."""

from kedit.data.dataset import Dataset
from kedit.data.files import load

__all__ = ["Dataset", "load"]
