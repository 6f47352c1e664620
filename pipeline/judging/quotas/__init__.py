"""Exact shares and caps."""
