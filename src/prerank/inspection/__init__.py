"""inspect: a finished run in the browser, read-only; see `app`."""
