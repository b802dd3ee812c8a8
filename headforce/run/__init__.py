"""Scripts that are run unedited: `headforce run` and `headforce compare`."""
