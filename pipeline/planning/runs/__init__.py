"""Proxy runs: read and check their table."""
