"""What a table of runs can and cannot tell: refusals, warnings, and the noise floor from replicates.

Works on one comparable set of runs (one model size, one step). Reads and writes nothing. Gives up with
ConfigError when no law can be fitted at all; everything else is a warning that travels with the law.
"""

from __future__ import annotations

import numpy as np

from manifests.errors import ConfigError
from pipeline.planning.descent import Array
from pipeline.planning.runs import RunsTable

# Runs of one mixture further apart than this share of the whole range of a loss: without seeds a mistake in the table,
# with two seeds noise that drowns what the mixture does.
WORST_REPLICATE_SPREAD = 0.5
HULL_SLACK = 1e-3  # a share: a ratio rounded to three decimals still counts as tried


def check_runs(table: RunsTable) -> list[str]:
    """Refuse what cannot be fitted; return the warnings for what can.

    Raises: ConfigError for too few mixtures, a domain that is 0 throughout, contradicting duplicates.
    """
    warnings = _check_duplicates(table)
    _check_count(table, warnings)
    _check_spread(table, warnings)
    seen = table.samples_seen[np.isfinite(table.samples_seen)]
    if seen.size and seen.max() > 1.05 * seen.min():
        warnings.append(
            f"samples_seen differs between the runs ({seen.min():.6g} to {seen.max():.6g}): losses of longer runs "
            "are lower for that reason alone; filter with --where"
        )
    return warnings


def noise_floor(table: RunsTable) -> Array:
    """Standard deviation of the loss between replicates of a mixture, a loss column; nan without replicates."""
    group = table.mixture_groups()
    result = np.full(len(table.losses), np.nan)
    for column in range(len(table.losses)):
        squares, freedom = 0.0, 0
        for g in range(int(group.max()) + 1):
            values = table.loss_values[(group == g) & ~table.derived, column]
            values = values[np.isfinite(values)]
            if values.size > 1:
                squares += float(np.sum((values - values.mean()) ** 2))
                freedom += values.size - 1
        if freedom:
            result[column] = np.sqrt(squares / freedom)
    return result


def _check_duplicates(table: RunsTable) -> list[str]:
    """Runs of one mixture may differ by noise where their seeds do; a warning a loss where that noise is half of all.

    Raises: ConfigError when the same seed gave two losses, or runs without seeds differ by half of the range.
    """
    group = table.mixture_groups()
    noisiest: dict[int, tuple[float, str]] = {}
    for g in range(int(group.max()) + 1):
        members = np.flatnonzero((group == g) & ~table.derived)
        for i, first in enumerate(members):
            for second in members[i + 1 :]:
                for column, spread, rows in _check_pair(table, int(first), int(second)):
                    noisiest[column] = max(noisiest.get(column, (0.0, "")), (spread, rows))
    return [
        f"loss_{table.losses[column]}: {rows} have the same mixture and differ by {spread:.0%} of the whole range of "
        "this loss: the noise between seeds is as large as what the mixture does, or one of the runs went wrong"
        for column, (spread, rows) in sorted(noisiest.items())
    ]


def _check_pair(table: RunsTable, first: int, second: int) -> list[tuple[int, float, str]]:
    """Losses in which two runs of one mixture with two seeds differ by half of the range: (column, share, rows)."""
    gap = np.abs(table.loss_values[first] - table.loss_values[second])
    span = np.nanmax(table.loss_values, axis=0) - np.nanmin(table.loss_values, axis=0)
    seeds = table.seeds[first], table.seeds[second]
    rows = f"rows {table.rows[first]} and {table.rows[second]}"
    where = f"{table.source}: {rows} have the same mixture"
    noisy = []
    for column in np.flatnonzero(np.isfinite(gap) & (gap > 1e-9)):
        shown = (
            f"loss_{table.losses[column]} is {table.loss_values[first, column]:.6g} and "
            f"{table.loss_values[second, column]:.6g}"
        )
        if seeds[0] == seeds[1] != "":
            raise ConfigError(f"{where} and the same seed {seeds[0]}, but {shown}; keep the right one")
        spread = float(gap[column] / span[column])
        if spread <= WORST_REPLICATE_SPREAD:
            continue
        if "" in seeds:
            raise ConfigError(
                f"{where}, but {shown}: they disagree by {spread:.0%} of the whole range of this loss; one of them is "
                "wrong, or they differ in something the table does not tell (runs with other seeds: add a column seed)"
            )
        noisy.append((int(column), spread, rows))
    return noisy


def _check_count(table: RunsTable, warnings: list[str]) -> None:
    num_domains = len(table.domains)
    num_params = num_domains + 1  # of the published law
    num_mixtures = int(table.mixture_groups().max()) + 1
    if num_mixtures < num_params:
        raise ConfigError(
            f"{table.source}: {num_mixtures} different mixture(s) for {num_domains} domains; a law has at least "
            f"{num_params} parameters: run {num_params - num_mixtures} more (`plantmix plan design` proposes them)"
        )
    if num_mixtures < num_params + 2:
        warnings.append(
            f"only {num_mixtures} different mixtures for a law of {num_params} parameters: "
            f"{num_params + 2} is the least for a check, {2 * num_domains + 2} is good, {3 * num_domains + 3} safe"
        )
    counts = np.isfinite(table.loss_values).sum(axis=0)
    for column, count in enumerate(counts):
        if count < num_params:
            raise ConfigError(
                f"{table.source}: loss_{table.losses[column]} is measured in {count} of {table.num_runs} runs; "
                f"a law needs at least {num_params}: drop the column or add runs"
            )


def _check_spread(table: RunsTable, warnings: list[str]) -> None:
    shares = table.shares
    low, high = shares.min(axis=0), shares.max(axis=0)
    single = [k for k in range(len(table.domains)) if high[k] - low[k] < 1e-6]
    for k in single:
        name = table.domains[k]
        if high[k] < 1e-9:
            raise ConfigError(
                f"{table.source}: mix_{name} is 0 in every run: all runs lie on one edge and nothing can be known "
                f"of {name}; add runs with it, or drop the column"
            )
        warnings.append(
            f"{name} has the single share {high[k]:.4g} in all runs: its effect cannot be known; it is held there"
        )
    centred = shares - shares.mean(axis=0)
    rank = int(np.linalg.matrix_rank(centred, tol=1e-6))
    free = len(table.domains) - len(single) - 1
    if rank < free:
        warnings.append(
            f"the tried mixtures vary in {rank} direction(s) only, of {free}: shares that always move together "
            "cannot be told apart; add runs off that line"
        )


def held_domains(shares_NK: Array) -> dict[int, float]:
    """Domains with one share in all runs, and that share: nothing may move them."""
    low, high = shares_NK.min(axis=0), shares_NK.max(axis=0)
    return {k: float(low[k]) for k in range(shares_NK.shape[1]) if high[k] - low[k] < 1e-6}


def outside_hull(tried_NK: Array, shares_QK: Array) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """True for each query that no mixture of the tried mixtures reaches (a linear programme each)."""
    from scipy.optimize import linprog

    num_tried = len(tried_NK)
    equalities = np.vstack([tried_NK.T, np.ones(num_tried)])
    outside = np.ones(len(shares_QK), dtype=bool)
    low, high = tried_NK.min(axis=0) - HULL_SLACK, tried_NK.max(axis=0) + HULL_SLACK
    for q in np.flatnonzero(((shares_QK >= low) & (shares_QK <= high)).all(axis=1)):
        shares = shares_QK[q]
        slack = np.vstack([np.eye(len(shares)), np.zeros(len(shares))])
        matrix = np.hstack([equalities, slack, -slack])
        bounds = [(0.0, 1.0)] * num_tried + [(0.0, HULL_SLACK)] * (2 * len(shares))
        found = linprog(np.zeros(matrix.shape[1]), A_eq=matrix, b_eq=np.r_[shares, 1.0], bounds=bounds)
        outside[q] = found.status != 0
    return outside
