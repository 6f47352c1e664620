"""Which runs each fold of a cross-validation leaves out.

A fold leaves out whole mixtures: replicates stay together, because a replicate would give its twin away. Up to
MAX_FOLDS mixtures each is left out alone. Reads and writes nothing. Axes: N runs, K domains.
"""

from __future__ import annotations

import numpy as np

from pipeline.planning.arrays import Array, Index
from pipeline.planning.runs.run_table import mixture_groups

MAX_FOLDS = 36


def assign_folds(shares_NK: Array, max_folds: int = MAX_FOLDS) -> tuple[Index, int]:
    """The fold of every run, and the number of folds; the same for any order of the runs."""
    group = mixture_groups(shares_NK)
    num_groups = int(group.max()) + 1
    num_folds = min(num_groups, max_folds)
    shuffled = np.random.default_rng(0).permutation(num_groups)
    return (shuffled % num_folds)[group], num_folds
