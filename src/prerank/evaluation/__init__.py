"""evaluate: scores of pools -> Report."""
