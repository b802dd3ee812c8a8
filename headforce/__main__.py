"""`python -m headforce` is the command line."""

from .cli import main

main()
