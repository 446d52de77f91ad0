"""The command line: the only package that reads configs. Nothing below imports it, or Hydra."""

from kedit.run import search_path as search_path  # what conf/ needs is registered with Hydra
