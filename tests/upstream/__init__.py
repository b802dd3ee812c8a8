"""Public repositories, unmodified, run under headforce: `python -m tests.upstream FAMILY CHECKOUT`."""
