"""Proxy runs: read and check their table, and carry runs of other sizes or steps over to one setting."""
