"""Datasets: one module for each form of file; it turns records into cases, or says which record is wrong, and how to
correct it."""

from kedit.data.dataset import Dataset
from kedit.data.files import load

__all__ = ["Dataset", "load"]
