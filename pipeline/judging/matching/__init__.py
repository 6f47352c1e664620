"""Exact near-duplicate search over 64-bit hashes, and the choice of the rows that stay."""
