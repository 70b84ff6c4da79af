"""Readers: files of one layout -> `prerank.data.assemble.Logs`."""
