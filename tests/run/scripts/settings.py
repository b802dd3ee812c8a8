"""Found by the script beside it, as Python finds it."""

CHUNK = 3
