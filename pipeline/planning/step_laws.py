"""A power law in training steps: what a run that stopped early would have come to.

L(t) = E + B t^-a; E and B are a run's own, the exponent a is shared by the runs of one size and loss.
Reads and writes nothing. Gives up with ConfigError when no run can be carried to the target.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from manifests.errors import ConfigError
from pipeline.planning.descent import Array
from pipeline.planning.runs import RunsTable

# The start of a run (warm-up, first descent) follows no power law: points before this share of it are left out.
SETTLED_FROM = 0.2
_STEP_EXPONENTS = np.geomspace(0.1, 2.0, 40)

Identity = tuple[str, tuple[float, ...], str]
"""(model_size, rounded shares, seed) of a run."""


def carry_to_step(table: RunsTable, target_step: float, notes: list[str]) -> RunsTable:
    """One row a run (size, mixture, seed) at the target step: measured where it got there, else by a step law.

    Step law: L(t) = E + B t^-a, with E and B a run's own and a shared by the runs of one size and loss.
    Runs with fewer than three measured steps that did not get there are left out, and said so.
    """
    runs = _runs_by_identity(table)
    kept: list[int] = []
    values: list[Array] = []
    num_measured = num_carried = 0
    exponents = {size: _step_exponents(table, runs, size, target_step) for size in set(table.model_sizes)}
    for (size, _, _), rows in runs.items():
        at_target = [row for row in rows if table.steps[row] == target_step]
        if at_target:
            kept += at_target
            values += [table.loss_values[row] for row in at_target]
            num_measured += len(at_target)
            continue
        carried = _extrapolate(table, rows, exponents[size], target_step)
        if np.isfinite(carried).any():
            kept.append(rows[-1])
            values.append(carried)
            num_carried += 1
    if not kept:
        raise ConfigError(
            f"{table.source}: no run reaches step {target_step:g} or has the three steps a step law needs"
        )
    notes.append(f"steps: {num_measured} run(s) measured at step {target_step:g}, {num_carried} carried to it")
    dropped = len(runs) - len({_identity(table, row) for row in kept})
    if dropped:
        notes.append(f"steps: {dropped} run(s) left out: fewer than three steps measured and none at the target")
    if num_carried:
        notes += _back_test(table, runs)
    there = table.take(np.array(kept))
    return replace(there, loss_values=np.stack(values), steps=np.full(len(kept), target_step))


def _identity(table: RunsTable, row: int) -> Identity:
    mixture = tuple(float(share) for share in np.round(table.shares[row], 6))
    return table.model_sizes[row], mixture, table.seeds[row]


def _runs_by_identity(table: RunsTable) -> dict[Identity, list[int]]:
    """Rows of each run in the order of their steps."""
    runs: dict[Identity, list[int]] = {}
    for row in np.argsort(table.steps, kind="stable"):
        runs.setdefault(_identity(table, int(row)), []).append(int(row))
    return runs


def _late(steps: Array, values: Array) -> NDArray[np.bool_]:
    """True for measured points past the start-up of a run, where a power law holds."""
    late: NDArray[np.bool_] = np.isfinite(values) & (steps >= SETTLED_FROM * steps.max()) & (steps > 0)
    return late


def power_fit(steps: Array, values: Array, exponent: float, target: float) -> tuple[Array, float]:
    """(E, B) at a given exponent, steps in units of the target, and the sum of squares."""
    features = np.stack([np.ones(len(steps)), (steps / target) ** -exponent], axis=1)
    solution = np.asarray(np.linalg.lstsq(features, values, rcond=None)[0], dtype=np.float64)
    return solution, float(np.sum((features @ solution - values) ** 2))


def _step_exponents(table: RunsTable, runs: dict[Identity, list[int]], size: str, target: float) -> Array:
    """The shared exponent of each loss at one size; 0.5 where no run has three steps."""
    result = np.full(len(table.losses), 0.5)
    for column in range(len(table.losses)):
        curves = []
        for identity, rows in runs.items():
            steps, values = table.steps[rows], table.loss_values[rows, column]
            late = _late(steps, values)
            if identity[0] == size and late.sum() >= 3:
                curves.append((steps[late], values[late]))
        if curves:
            misfit = [sum(power_fit(s, v, a, target)[1] for s, v in curves) for a in _STEP_EXPONENTS]
            result[column] = _STEP_EXPONENTS[int(np.argmin(misfit))]
    return result


def _extrapolate(table: RunsTable, rows: list[int], exponents: Array, target: float) -> Array:
    """The losses of one run at the target step; nan for a loss with fewer than three late steps."""
    carried = np.full(len(table.losses), np.nan)
    for column in range(len(table.losses)):
        steps, values = table.steps[rows], table.loss_values[rows, column]
        late = _late(steps, values)
        if late.sum() >= 3:
            solution, _ = power_fit(steps[late], values[late], float(exponents[column]), target)
            carried[column] = solution.sum()
    return carried


def _back_test(table: RunsTable, runs: dict[Identity, list[int]]) -> list[str]:
    """How well the first half of each run foretells its last step, beside taking the last value seen."""
    errors, stale = [], []
    for size in sorted(set(table.model_sizes)):
        halves = {}
        for identity, rows in runs.items():
            end = table.steps[rows[-1]]
            first = [row for row in rows if table.steps[row] <= end / 2]
            if identity[0] == size and len(first) >= 3:
                halves[identity] = first
        if not halves:
            continue
        ends = [table.steps[runs[identity][-1]] for identity in halves]
        exponents = _step_exponents(table, halves, size, float(np.median(ends)))
        for (identity, first), end in zip(halves.items(), ends, strict=True):
            truth = table.loss_values[runs[identity][-1]]
            errors.append(np.abs(_extrapolate(table, first, exponents, float(end)) - truth))
            stale.append(np.abs(table.loss_values[first[-1]] - truth))
    if not errors or not np.isfinite(np.array(errors)).any():
        return []
    return [
        f"steps: back-test, the end of a run from its first half: error {np.nanmean(errors):.4f}, "
        f"the last value seen {np.nanmean(stale):.4f}"
    ]
