"""Files that a run leaves: checkpoints, log, plots of the log."""
