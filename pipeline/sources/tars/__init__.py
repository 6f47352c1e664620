"""Tars in a store: their samples, read once, front to back."""
