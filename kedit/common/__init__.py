"""What every other package may use: errors, where things lie, the cache, progress bars, seeds."""
