"""prepare: logs of any kind -> Dataset."""
