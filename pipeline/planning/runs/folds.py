"""Which runs each fold of a cross-validation leaves out.

A fold leaves out whole mixtures: replicates stay together, because a replicate would give its twin away. Up to
MAX_FOLDS mixtures each is left out alone. Reads and writes nothing. Axes: C losses, G folds, N runs, K domains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.planning.arrays import Array, Index
from pipeline.planning.runs.run_table import mixture_groups

MAX_FOLDS = 36


@dataclass(frozen=True)
class FoldPlan:
    """What every fold trains on. A run that is left out has weight 0 in its fold."""

    fold_of_run: Index  # the fold whose fits predict the run
    losses: Array  # G x C x N; folds differ only where losses were carried over from another size
    weights: Array  # G x C x N


def assign_folds(shares_NK: Array, max_folds: int = MAX_FOLDS) -> tuple[Index, int]:
    """The fold of every run, and the number of folds; the same for any order of the runs."""
    group = mixture_groups(shares_NK)
    num_groups = int(group.max()) + 1
    num_folds = min(num_groups, max_folds)
    shuffled = np.random.default_rng(0).permutation(num_groups)
    return (shuffled % num_folds)[group], num_folds


def plan_folds(shares_NK: Array, losses_CN: Array, weights_CN: Array) -> FoldPlan:
    """Leave out one mixture at a time, or one of MAX_FOLDS groups of mixtures."""
    fold_of_run, num_folds = assign_folds(shares_NK)
    mask_GN = (fold_of_run[None, :] != np.arange(num_folds)[:, None]).astype(float)
    losses = np.repeat(losses_CN[None], num_folds, axis=0)
    return FoldPlan(fold_of_run, losses, weights_CN[None] * mask_GN[:, None, :])
