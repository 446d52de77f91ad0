"""The command line: the only package that reads configs. Nothing below imports it, or Hydra."""
