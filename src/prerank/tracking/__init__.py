"""Where the figures of a run go while it runs: JSON lines always, other trackers when asked."""
