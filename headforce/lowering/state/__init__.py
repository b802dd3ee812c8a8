"""What stores decide and make out of tensors: a file for each operator with state, named as in policy/ops."""
