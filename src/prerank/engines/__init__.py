"""How stages run: in this process (the default, `prerank.pipeline`) or on a Ray cluster."""
