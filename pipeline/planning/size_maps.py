"""An affine map a loss between model sizes: many small runs and a few large ones make one table.

Mixtures run at the target size keep their losses. All others take the loss of the nearest smaller size, mapped
by large = a + b small, which is fitted on the mixtures of the target size (where a mixture was not run small, the
small runs' own law stands in). Mapped losses count half. Reads and writes nothing. Gives up with ConfigError
when fewer than two mixtures were run at the target size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from manifests.errors import ConfigError
from pipeline.planning.crossval import FoldPlan, assign_folds
from pipeline.planning.descent import Array
from pipeline.planning.forms import FORMS, SHARED_EXPONENT
from pipeline.planning.runs import RunsTable

DERIVED_WEIGHT = 0.5
# The slope is drawn to 1 with the force of this many pairs: two pairs must not make a wild slope.
SLOPE_PRIOR_PAIRS = 1.0


@dataclass(frozen=True)
class _SmallRuns:
    """Runs of one smaller size that are carried over, with every run of that size to map them by."""

    carried: RunsTable
    at_target: Array  # losses this size gives the mixtures of the target runs, T x C


def carry_to_size(table: RunsTable, size: str, smaller: list[str], notes: list[str]) -> tuple[RunsTable, FoldPlan]:
    """The joint table at `size`, and folds that leave out measured mixtures with all that was learnt from them.

    In the fold that leaves a mixture out, its own mapped loss takes its place, as it would for a user.

    Raises: ConfigError with fewer than two mixtures at the target size.
    """
    target = table.take(np.array([name == size for name in table.model_sizes]))
    fold_of_target, num_folds = assign_folds(target.shares)
    if num_folds < 2:
        raise ConfigError(
            f"{table.source}: {num_folds} mixture was run at size {size}; the map between sizes needs at least 2"
        )
    parts = _small_runs(table, target, smaller, size, notes)
    joint = stack_runs([target, *(part.carried for part in parts)])
    everything = np.ones(target.num_runs, dtype=bool)
    whole = _joint_losses(target, parts, everything)
    losses, weights = [], []
    for fold in range(num_folds):
        fold_losses = _joint_losses(target, parts, fold_of_target != fold)
        measured = np.isfinite(fold_losses)
        losses.append(np.where(measured, fold_losses, 0.0).T)
        weights.append((measured * joint.weights[:, None]).T)
    num_derived = joint.num_runs - target.num_runs
    folds = np.concatenate([fold_of_target, np.zeros(num_derived, dtype=np.intp)])
    return replace(joint, loss_values=whole), FoldPlan(folds, np.stack(losses), np.stack(weights))


def affine_map(small_N: Array, large_N: Array) -> tuple[float, float]:
    """(a, b) of large = a + b small, b drawn towards 1."""
    centre_small, centre_large = small_N.mean(), large_N.mean()
    spread = float(np.sum((small_N - centre_small) ** 2))
    prior = SLOPE_PRIOR_PAIRS * max(spread / len(small_N), 1e-12)
    slope = (float(np.sum((small_N - centre_small) * (large_N - centre_large))) + prior) / (spread + prior)
    return float(centre_large - slope * centre_small), slope


def _small_runs(
    table: RunsTable, target: RunsTable, smaller: list[str], size: str, notes: list[str]
) -> list[_SmallRuns]:
    parts = []
    seen = np.zeros((0, len(table.domains)))
    for name in smaller:
        small = table.take(np.array([other == name for other in table.model_sizes]))
        new = ~_among(small.shares, seen)
        seen = np.concatenate([seen, small.shares])
        if new.any():
            parts.append(_SmallRuns(_as_derived(small.take(new)), _losses_at(small, target.shares)))
            notes.append(f"sizes: {int(new.sum())} run(s) of {name} carried to {size} by an affine map a loss")
    return parts


def _as_derived(small: RunsTable) -> RunsTable:
    return replace(small, derived=np.ones(small.num_runs, dtype=bool), weights=small.weights * DERIVED_WEIGHT)


def _among(shares_QK: Array, others_NK: Array) -> NDArray[np.bool_]:
    gap = np.abs(shares_QK[:, None, :] - others_NK[None]).max(axis=2, initial=0.0)
    found: NDArray[np.bool_] = (gap < 1e-6).any(axis=1)
    return found


def _losses_at(small: RunsTable, shares_TK: Array) -> Array:
    """The small size's losses at the target's mixtures: the mean of its runs there, else its law; else nan."""
    result = np.full((len(shares_TK), len(small.losses)), np.nan)
    for column in range(len(small.losses)):
        measured = np.isfinite(small.loss_values[:, column])
        shares, values = small.shares[measured], small.loss_values[measured, column]
        if len(np.unique(np.round(shares, 6), axis=0)) >= len(small.domains) + 2:
            form = FORMS[SHARED_EXPONENT]
            fit = form.fit(shares, values[None], small.weights[measured][None])
            result[:, column] = form.predict(fit, shares_TK)[0]
        for t in range(len(shares_TK)):
            same = _among(shares, shares_TK[t : t + 1])
            if same.any():
                result[t, column] = float(np.mean(values[same]))
    return result


def _joint_losses(target: RunsTable, parts: list[_SmallRuns], used_T: NDArray[np.bool_]) -> Array:
    """Losses of the joint table when only the target runs in `used_T` are known; nan where nothing is."""
    known = np.where(used_T[:, None], target.loss_values, np.nan)
    blocks = [known]
    for part in parts:
        mapped = np.full(part.carried.loss_values.shape, np.nan)
        for column in range(len(target.losses)):
            pairs = np.isfinite(known[:, column]) & np.isfinite(part.at_target[:, column])
            if pairs.any():
                level, slope = affine_map(part.at_target[pairs, column], known[pairs, column])
                mapped[:, column] = level + slope * part.carried.loss_values[:, column]
        mapped[_among(part.carried.shares, target.shares[used_T])] = np.nan
        blocks.append(mapped)
    return np.concatenate(blocks)


def stack_runs(tables: list[RunsTable]) -> RunsTable:
    """Tables of the same domains and losses, one below the other."""
    weights = np.concatenate([table.weights for table in tables])
    return replace(
        tables[0],
        shares=np.concatenate([table.shares for table in tables]),
        loss_values=np.concatenate([table.loss_values for table in tables]),
        weights=weights,
        rows=np.concatenate([table.rows for table in tables]),
        model_sizes=tuple(name for table in tables for name in table.model_sizes),
        steps=np.concatenate([table.steps for table in tables]),
        seeds=tuple(seed for table in tables for seed in table.seeds),
        samples_seen=np.concatenate([table.samples_seen for table in tables]),
        derived=np.concatenate([table.derived for table in tables]),
    )
