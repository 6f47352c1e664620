"""Proxy runs: read and check their table, and cut it into folds."""
