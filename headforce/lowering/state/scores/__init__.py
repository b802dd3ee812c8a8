"""Scores, a file for each."""
