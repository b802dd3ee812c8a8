"""Reward Forcing's sink, as an extension of headforce: what leaves the window is blended into the first frames."""
