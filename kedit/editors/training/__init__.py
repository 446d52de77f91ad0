"""What is learnt before the first edit: trained once, resumed after a kill, kept in the cache."""
