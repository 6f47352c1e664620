"""The stage `fetch`."""
