"""Exact near-duplicate search over 64-bit hashes, and the choice of who stays.

plan.py picks the keys, search.py finds pairs of distinct hashes, pairs.py brings them back to rows,
cross.py matches one table against another, groups.py chooses the rows that stay.
"""

from pipeline.matching.cross import cross_pairs
from pipeline.matching.groups import choose_kept, choose_kept_distinct
from pipeline.matching.pairs import (
    DistinctPairs,
    degenerate_hashes,
    distinct_pairs,
    expand_pairs,
    hamming_pairs,
)

__all__ = [
    "DistinctPairs",
    "choose_kept",
    "choose_kept_distinct",
    "cross_pairs",
    "degenerate_hashes",
    "distinct_pairs",
    "expand_pairs",
    "hamming_pairs",
]
