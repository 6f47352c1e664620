"""Exact near-duplicate search over 64-bit hashes, and the choice of the rows that stay.

plan.py picks the keys, search.py finds pairs of distinct hashes, pairs.py turns them into pairs of rows, cross.py
matches one table against another, groups.py chooses the rows that stay.
"""

from pipeline.matching.cross import cross_pairs
from pipeline.matching.groups import choose_kept, choose_kept_distinct
from pipeline.matching.pairs import DistinctPairs, distinct_pairs, expand_pairs, hamming_pairs

__all__ = [
    "DistinctPairs",
    "choose_kept",
    "choose_kept_distinct",
    "cross_pairs",
    "distinct_pairs",
    "expand_pairs",
    "hamming_pairs",
]
