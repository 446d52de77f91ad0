"""Used by every other package: errors, paths, the cache, progress bars, seeds."""
