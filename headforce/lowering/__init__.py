"""From a policy and shapes to a launch: plans, tables, page pools, stream state, targets."""
