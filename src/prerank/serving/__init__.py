"""export and serve: PreRanker -> bundle -> scores over HTTP, without torch."""
