"""Measuring what the heads of a model attend to, and which policy follows from it: `headforce profile`."""
