"""Exact near-duplicate search over 64-bit hashes, and the choice of who stays.

plan.py picks the keys, search.py finds pairs of distinct hashes, pairs.py brings them back to rows,
groups.py chooses the rows that stay.
"""

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
    "degenerate_hashes",
    "distinct_pairs",
    "expand_pairs",
    "hamming_pairs",
]
