"""``python -m prerank`` is the command line."""

from prerank.cli import main

main()
