"""An extension of headforce: windows with gaps, and a target that computes attention head by head."""
