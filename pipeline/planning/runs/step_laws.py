"""A power law in training steps: the loss that a run which stopped early would have reached.

L(t) = E + B t^-a; E and B belong to one run, the exponent a is shared by the runs of one size and loss.
Reads and writes nothing. Gives up with ConfigError when no run can be carried to the target.

Source: the nested scaling laws of Ye et al. 2024 (arXiv 2403.16952).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from manifests.errors import ConfigError
from pipeline.planning.arrays import Array, Index
from pipeline.planning.runs.run_table import RunsTable

# The start of a run (warm-up, first descent) follows no power law: points before this share of it are left out.
SETTLED_FROM = 0.2
FEWEST_STEPS = 3
_EXPONENTS = np.geomspace(0.1, 2.0, 40)


def carry_to_step(table: RunsTable, target: float, notes: list[str]) -> RunsTable:
    """One row for each run at the target step: measured if the run got there, else by the step law.

    A run that did not get there and has fewer than three measured steps is left out; `notes` says so.

    Raises: ConfigError when no run can be carried.
    """
    runs = _runs_in_order(table)
    kept: list[int] = []
    values: list[Array] = []
    num_measured = num_carried = num_dropped = 0
    for runs_of_size in runs.values():
        exponents = _shared_exponents(table, runs_of_size, target)
        for rows in runs_of_size:
            measured = [int(row) for row in rows if table.steps[row] == target]
            carried = _extrapolate(table, rows, exponents, target)
            if measured:
                kept += measured
                values += [table.loss_values[row] for row in measured]
                num_measured += len(measured)
            elif np.isfinite(carried).any():
                kept.append(int(rows[-1]))
                values.append(carried)
                num_carried += 1
            else:
                num_dropped += 1
    if not kept:
        raise ConfigError(f"{table.source}: no run reaches step {target:g} or has the three steps a step law needs")
    notes.append(f"steps: {num_measured} run(s) measured at step {target:g}, {num_carried} carried to it")
    if num_dropped:
        notes.append(f"steps: {num_dropped} run(s) left out: fewer than three steps measured and none at the target")
    there = table.take(np.array(kept))
    return replace(there, loss_values=np.stack(values), steps=np.full(len(kept), target))


def _runs_in_order(table: RunsTable) -> dict[str, list[Index]]:
    """For each size, the rows of each run (one mixture, one seed) in the order of their steps."""
    group = table.mixture_groups()
    runs: dict[tuple[str, int, str], list[int]] = {}
    for row in np.argsort(table.steps, kind="stable"):
        identity = str(table.model_sizes[row]), int(group[row]), str(table.seeds[row])
        runs.setdefault(identity, []).append(int(row))
    by_size: dict[str, list[Index]] = {}
    for (size, _, _), rows in runs.items():
        by_size.setdefault(size, []).append(np.array(rows))
    return by_size


def _settled(table: RunsTable, rows: Index, column: int) -> tuple[Array, Array]:
    """Steps and losses of one run past its start, where a power law holds."""
    steps, values = table.steps[rows], table.loss_values[rows, column]
    late = np.isfinite(values) & (steps >= SETTLED_FROM * steps.max()) & (steps > 0)
    return steps[late], values[late]


def _power_fit(steps: Array, values: Array, exponent: float, target: float) -> tuple[float, float]:
    """The loss at the target under the best E and B at this exponent, and the sum of squared residuals."""
    features = np.stack([np.ones(len(steps)), (steps / target) ** -exponent], axis=1)
    solution = np.asarray(np.linalg.lstsq(features, values, rcond=None)[0], dtype=np.float64)
    return float(solution.sum()), float(np.sum((features @ solution - values) ** 2))


def _shared_exponents(table: RunsTable, runs: list[Index], target: float) -> Array:
    """For each loss the exponent that fits all these runs best; 1 where no run has enough steps."""
    result = np.ones(len(table.losses))
    for column in range(len(table.losses)):
        curves = [_settled(table, rows, column) for rows in runs]
        curves = [curve for curve in curves if len(curve[0]) >= FEWEST_STEPS]
        if curves:
            misfit = [sum(_power_fit(*curve, exponent, target)[1] for curve in curves) for exponent in _EXPONENTS]
            result[column] = _EXPONENTS[int(np.argmin(misfit))]
    return result


def _extrapolate(table: RunsTable, rows: Index, exponents: Array, target: float) -> Array:
    """The losses of one run at the target step; nan for a loss with fewer than three settled steps."""
    carried = np.full(len(table.losses), np.nan)
    for column in range(len(table.losses)):
        steps, values = _settled(table, rows, column)
        if len(steps) >= FEWEST_STEPS:
            carried[column], _ = _power_fit(steps, values, float(exponents[column]), target)
    return carried
