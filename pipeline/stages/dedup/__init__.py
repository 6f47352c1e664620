"""The stage `dedup`."""
