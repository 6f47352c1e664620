"""The stage `select`."""
