"""simulate: every method as the pre-ranker of a shop of its own, day after day."""
