"""One table from many small runs and a few large ones, by an affine map between model sizes for each loss.

Mixtures run at the target size keep their losses. All others take the loss of the nearest smaller size, mapped by
large = a + b small. The map is fitted on the mixtures run at both sizes. Mapped losses count half. Reads and writes
nothing. Gives up with ConfigError when fewer than two mixtures were run at the target size.

Axes: N runs, M mixtures, C losses, G folds.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from manifests.errors import ConfigError
from pipeline.planning.arrays import Array, Index, Mask
from pipeline.planning.runs.folds import FoldPlan, assign_folds
from pipeline.planning.runs.run_table import RunsTable

DERIVED_WEIGHT = 0.5
# The slope is drawn to 1 with the force of this many pairs, so that two pairs do not make a wild slope.
SLOPE_PRIOR_PAIRS = 1.0


def carry_to_size(table: RunsTable, size: str, smaller: list[str], notes: list[str]) -> tuple[RunsTable, FoldPlan]:
    """The joint table at `size`, and folds that leave out measured mixtures with all that was learnt from them.

    In the fold that leaves a mixture out, its own mapped loss takes its place, as it would for a user.

    Raises: ConfigError with fewer than two mixtures at the target size.
    """
    group = table.mixture_groups()
    at_target = table.model_sizes == size
    num_mixtures = len(set(group[at_target]))
    if num_mixtures < 2:
        raise ConfigError(
            f"{table.source}: {num_mixtures} mixture(s) were run at size {size}; the map between sizes needs at least "
            f"2 (the sizes are: {', '.join(sorted(set(table.model_sizes.tolist())))})"
        )
    rows = [np.flatnonzero(at_target)]
    seen = np.zeros(table.num_runs, dtype=bool)
    for name in smaller:
        of_size = table.model_sizes == name
        carried = np.flatnonzero(of_size & ~np.isin(group, group[seen]))
        seen |= of_size
        if carried.size:
            rows.append(carried)
            notes.append(f"sizes: {carried.size} run(s) of {name} carried to {size} by an affine map for each loss")
    order = np.concatenate(rows)
    derived = ~at_target[order]
    weights = table.weights[order] * np.where(derived, DERIVED_WEIGHT, 1.0)
    fold_of_target, num_folds = assign_folds(table.shares[at_target])
    fold_of_run = np.zeros(table.num_runs, dtype=np.intp)
    fold_of_run[at_target] = fold_of_target
    known = [at_target & (fold_of_run != fold) for fold in range(num_folds)]
    losses_GCN = np.stack([_losses_at_size(table, group, size, known_N)[order].T for known_N in known])
    measured = np.isfinite(losses_GCN)
    plan = FoldPlan(fold_of_run[order], np.where(measured, losses_GCN, 0.0), measured * weights)
    whole = _losses_at_size(table, group, size, at_target)[order]
    return replace(table.take(order), loss_values=whole, weights=weights, derived=derived), plan


def affine_map(small_M: Array, large_M: Array) -> tuple[float, float]:
    """(a, b) of large = a + b small, with b drawn towards 1."""
    off_small, off_large = small_M - small_M.mean(), large_M - large_M.mean()
    spread = float(np.sum(off_small**2))
    prior = SLOPE_PRIOR_PAIRS * max(spread / len(small_M), 1e-12)
    slope = (float(np.sum(off_small * off_large)) + prior) / (spread + prior)
    return float(large_M.mean() - slope * small_M.mean()), slope


def _losses_at_size(table: RunsTable, group: Index, size: str, known_N: Mask) -> Array:
    """Each run's losses at the target size when only the target runs in `known_N` are known, shape N x C.

    nan for other runs of the target size, for smaller runs of a known mixture, and where nothing can be mapped.
    """
    result = np.full(table.loss_values.shape, np.nan)
    large_MC = _mixture_means(table, group, known_N)
    for name in set(table.model_sizes.tolist()) - {size}:
        of_size = table.model_sizes == name
        small_MC = _mixture_means(table, group, of_size)
        for column in range(len(table.losses)):
            both = np.isfinite(small_MC[:, column]) & np.isfinite(large_MC[:, column])
            if both.any():
                level, slope = affine_map(small_MC[both, column], large_MC[both, column])
                result[of_size, column] = level + slope * table.loss_values[of_size, column]
    result[np.isin(group, group[known_N])] = np.nan
    result[known_N] = table.loss_values[known_N]
    return result


def _mixture_means(table: RunsTable, group: Index, used_N: Mask) -> Array:
    """Mean loss of each mixture over the used runs, shape M x C; nan where nothing was measured."""
    members_MN = (np.arange(group.max() + 1)[:, None] == group) & used_N
    measured_NC = np.isfinite(table.loss_values)
    with np.errstate(invalid="ignore"):  # 0 / 0 where a loss was not measured
        result: Array = (
            members_MN @ np.where(measured_NC, table.loss_values, 0.0) / (members_MN.astype(int) @ measured_NC)
        )
    return result
