"""Found by the script beside it, as Python finds it."""

CHUNKS = [3, 3]
