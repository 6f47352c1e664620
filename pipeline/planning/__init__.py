"""Mixture planning: runs table in, fitted law, chosen ratio out; see `laws`, `choose` and `design`."""
