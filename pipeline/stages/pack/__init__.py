"""The stage `pack`."""
