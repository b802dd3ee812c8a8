"""Verifying a compiled model against the eager one, over whole rollouts, and finding what is at fault."""
