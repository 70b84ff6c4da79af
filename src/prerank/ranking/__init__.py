"""train: clicks and pseudo-labels -> PreRanker."""
