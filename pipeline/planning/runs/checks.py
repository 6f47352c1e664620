"""Checks of a table of runs: refusals, warnings, and the noise between replicates.

Works on comparable runs (one model size, one step). Reads and writes nothing. Gives up with ConfigError when no law
can be fitted at all; everything else is a warning that travels with the law.
"""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np

from manifests.errors import ConfigError
from pipeline.planning.arrays import Array, Index, Mask
from pipeline.planning.runs.run_table import RunsTable

# Two runs of one mixture that differ by more than this share of the whole range of a loss: without seeds that is
# a mistake in the table, with two seeds the noise is as large as the effect of the mixture.
WORST_REPLICATE_SPREAD = 0.5
HULL_SLACK = 1e-3  # a share: a ratio rounded to three decimals still counts as tried
_ONE_SHARE = 1e-6


def check_runs(table: RunsTable) -> list[str]:
    """Refuse what cannot be fitted; return the warnings for what can.

    Raises: ConfigError for too few mixtures, a domain that is 0 throughout, contradicting duplicates.
    """
    warnings = [*_check_duplicates(table), *_check_count(table), *_check_spread(table)]
    seen = table.samples_seen[np.isfinite(table.samples_seen)]
    if seen.size and seen.max() > 1.05 * seen.min():
        warnings.append(
            f"samples_seen differs between the runs ({seen.min():.6g} to {seen.max():.6g}): losses of longer runs "
            "are lower for that reason alone; filter with --where"
        )
    return warnings


def require_one_setting(table: RunsTable) -> None:
    """Losses of different sizes and steps do not lie on one law.

    Raises: ConfigError that lists the settings and says how to keep one.
    """
    counts = Counter(map(_condition, table.model_sizes.tolist(), table.steps.tolist()))
    if len(counts) == 1:
        return
    most = counts.most_common(4)
    shown = "; ".join(f"{condition}: {count} runs" for condition, count in most)
    more = f"; and {len(counts) - 4} more" if len(counts) > 4 else ""
    raise ConfigError(
        f"{table.source}: the runs have {len(counts)} different settings, whose losses do not lie on one law: "
        f'{shown}{more}. Keep one, e.g. --where "{most[0][0]}"'
    )


def _condition(size: str, step: float) -> str:
    """Return a setting as a condition, e.g. "model_size = '410M' AND step = 60000"."""
    parts = [f"model_size = '{size}'"] if size else []
    parts += [f"step = {step:g}"] if np.isfinite(step) else []
    return " AND ".join(parts) or "no model_size, no step"


def noise_floor(table: RunsTable) -> Array:
    """Return standard deviation of each loss between replicates of a mixture; nan without replicates."""
    squares, freedom = np.zeros(len(table.losses)), np.zeros(len(table.losses))
    for members in _replicates(table):
        values = np.ma.masked_invalid(table.loss_values[members])
        squares += values.var(axis=0).filled(0.0) * values.count(axis=0)
        freedom += np.maximum(values.count(axis=0) - 1, 0)
    return np.sqrt(squares / np.where(freedom > 0, freedom, np.nan))


def repeated_mixtures(table: RunsTable) -> Array:
    """Return the mixtures that more than one run has, shape M x K."""
    repeated = [table.shares[members[0]] for members in _replicates(table) if len(members) > 1]
    return np.array(repeated).reshape(-1, table.shares.shape[1])


def _replicates(table: RunsTable) -> list[Index]:
    group = table.mixture_groups()
    return [np.flatnonzero(group == g) for g in range(table.num_mixtures)]


def _check_duplicates(table: RunsTable) -> list[str]:
    """Check runs of one mixture. They may differ by noise when their seeds differ; warn where the noise is large.

    Raises: ConfigError when the same seed gave two losses, or runs without seeds differ by half of the range.
    """
    span = np.maximum(np.nanmax(table.loss_values, axis=0) - np.nanmin(table.loss_values, axis=0), 1e-9)
    warnings = []
    for members in _replicates(table):
        for first, second in itertools.combinations(members, 2):
            gap = np.nan_to_num(np.abs(table.loss_values[first] - table.loss_values[second]) / span)
            column = int(gap.argmax())
            values = table.loss_values[[first, second], column]
            pair = f"rows {table.rows[first]} and {table.rows[second]} have the same mixture"
            shown = f"loss_{table.losses[column]} is {values[0]:.6g} and {values[1]:.6g}"
            seeds = {str(table.seeds[first]), str(table.seeds[second])}
            if gap[column] * span[column] > 1e-9 and len(seeds) == 1 and "" not in seeds:
                raise ConfigError(
                    f"{table.source}: {pair} and the same seed {seeds.pop()}, but {shown}; keep the right one"
                )
            if gap[column] <= WORST_REPLICATE_SPREAD:
                continue
            if "" in seeds:
                raise ConfigError(
                    f"{table.source}: {pair}, but {shown}: they disagree by {gap[column]:.0%} of the whole range of "
                    "this loss; one of them is wrong, or they differ in something the table does not tell (runs with "
                    "other seeds: add a column seed)"
                )
            warnings.append(
                f"loss_{table.losses[column]}: {pair} and differ by {gap[column]:.0%} of the whole range of this loss: "
                "the noise between seeds is as large as what the mixture does, or one of the runs went wrong"
            )
    return warnings


def least_for_a_check(num_domains: int) -> int:
    """Return how many mixtures leave something to check a law with: two more than its parameters."""
    return num_domains + 3


def _check_count(table: RunsTable) -> list[str]:
    num_domains, num_mixtures = len(table.domains), table.num_mixtures
    num_params = num_domains + 1  # of the published law
    if num_mixtures < num_params:
        raise ConfigError(
            f"{table.source}: {num_mixtures} different mixture(s) for {num_domains} domains; a law has at least "
            f"{num_params} parameters: run {num_params - num_mixtures} more (`plantmix plan design` proposes them)"
        )
    for loss, count in zip(table.losses, np.isfinite(table.loss_values).sum(axis=0), strict=True):
        if count < num_params:
            raise ConfigError(
                f"{table.source}: loss_{loss} is measured in {count} of {table.num_runs} runs; a law needs at least "
                f"{num_params}: drop the column or add runs"
            )
    least, good, safe = least_for_a_check(num_domains), 2 * num_domains + 2, 3 * num_domains + 3
    if num_mixtures >= least:
        return []
    return [
        f"only {num_mixtures} different mixtures for a law of {num_params} parameters: "
        f"{least} is the least for a check, {good} is good, {safe} safe"
    ]


def _check_spread(table: RunsTable) -> list[str]:
    held = held_domains(table.shares)
    empty = [table.domains[k] for k, share in held.items() if share < 1e-9]
    if empty:
        raise ConfigError(
            f"{table.source}: mix_{empty[0]} is 0 in every run, so its effect is unknown; add runs with {empty[0]}, "
            f"or give a table without {', '.join(f'mix_{domain}' for domain in empty)}"
        )
    warnings = [
        f"{table.domains[k]} has the single share {share:.4g} in all runs: its effect cannot be known; it is held there"
        for k, share in held.items()
    ]
    rank = int(np.linalg.matrix_rank(table.shares - table.shares.mean(axis=0), tol=_ONE_SHARE))
    free = len(table.domains) - len(held) - 1
    if rank < free:
        warnings.append(
            f"the tried mixtures vary in {rank} direction(s) only, of {free}: shares that always move together "
            "cannot be told apart; add runs off that line"
        )
    return warnings


def held_domains(shares_NK: Array) -> dict[int, float]:
    """Domains that have one share in all runs, and that share: nothing may move them."""
    low, high = shares_NK.min(axis=0), shares_NK.max(axis=0)
    return {k: float(high[k]) for k in range(shares_NK.shape[1]) if high[k] - low[k] < _ONE_SHARE}


def outside_hull(tried_NK: Array, shares_QK: Array) -> Mask:
    """Return true for each query that no mixture of the tried mixtures reaches; solves one linear programme a query."""
    from scipy.optimize import linprog

    num_tried, num_domains = tried_NK.shape
    outside = np.ones(len(shares_QK), dtype=bool)
    low, high = tried_NK.min(axis=0) - HULL_SLACK, tried_NK.max(axis=0) + HULL_SLACK
    slack = np.vstack([np.eye(num_domains), np.zeros(num_domains)])
    matrix = np.hstack([np.vstack([tried_NK.T, np.ones(num_tried)]), slack, -slack])
    bounds = [(0.0, 1.0)] * num_tried + [(0.0, HULL_SLACK)] * (2 * num_domains)
    for q in np.flatnonzero(((shares_QK >= low) & (shares_QK <= high)).all(axis=1)):
        solution = linprog(np.zeros(matrix.shape[1]), A_eq=matrix, b_eq=np.r_[shares_QK[q], 1.0], bounds=bounds)
        outside[q] = solution.status != 0
    return outside
