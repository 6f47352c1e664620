"""Many small runs over a list of mixtures, for the planner."""
