"""Shards in, a trained DALIP model and its evaluation out: the `dalip` command."""
