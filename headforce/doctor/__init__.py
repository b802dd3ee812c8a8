"""What headforce can do for a model that it has never seen, and what stands in the way: `headforce doctor`."""
