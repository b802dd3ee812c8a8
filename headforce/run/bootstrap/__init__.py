"""The folder that `headforce run` puts in front of the script's import path."""
