"""Training tasks: a task is a loss, the columns that it needs, and the judge of a held-out pair."""
