"""Bytes to a measured picture: open, resize, store, hash."""
