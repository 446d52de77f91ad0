"""Second moments C = E[k kᵀ] of what enters an MLP's output matrix ("covariance", "mom2"), over ordinary text."""
