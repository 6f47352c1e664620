"""One training run, on one process or many."""
