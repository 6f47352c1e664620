"""A power law in model size: what mixtures run at three sizes and more would come to at a larger one.

L(N) = E + B N^-a; E and B are a mixture's own, the exponent a is shared by all mixtures of one loss. For targets that
no run has (two runs there make the affine map of `size_maps` the better way). Reads and writes nothing. Gives up with
ConfigError when the sizes cannot carry a law.

Source: the nested scaling laws of Ye et al. 2024 (arXiv 2403.16952), section on model sizes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from manifests.errors import ConfigError
from pipeline.planning.descent import Array
from pipeline.planning.runs import RunsTable
from pipeline.planning.step_laws import power_fit

FEWEST_SIZES = 3
_EXPONENTS = np.geomspace(0.05, 1.0, 300)
_SCALES = {"k": 1e3, "K": 1e3, "m": 1e6, "M": 1e6, "b": 1e9, "B": 1e9, "G": 1e9}

Curve = tuple[Array, Array]
"""Sizes and losses of one mixture."""


def size_number(name: str) -> float:
    """70M as 7e7; -1 for a name that is no number."""
    number = name[:-1] if name[-1:] in _SCALES else name
    try:
        return float(number) * _SCALES.get(name[-1:], 1.0)
    except ValueError:
        return -1.0


def extrapolate_to_size(table: RunsTable, size: str, notes: list[str]) -> RunsTable:
    """One row at `size` for each mixture run at two sizes or more, each loss by the power law in size.

    Replicates are averaged first. Mixtures run at one size only say nothing of its effect.

    Raises: ConfigError for sizes that are no numbers, or when no two mixtures were run at three sizes.
    """
    target = size_number(size)
    unnamed = sorted({name for name in (*table.model_sizes, size) if size_number(name) <= 0})
    if unnamed:
        raise ConfigError(
            f"{table.source}: model_size {', '.join(repr(name) for name in unnamed)}: not a number such as 70M; a law "
            "in size needs numbers"
        )
    sizes = np.array([size_number(name) for name in table.model_sizes])
    group = table.mixture_groups()
    members = [np.flatnonzero(group == g) for g in range(int(group.max()) + 1)]
    many = [rows for rows in members if len(set(sizes[rows])) >= FEWEST_SIZES]
    if len(many) < 2:
        known = ", ".join(sorted(set(table.model_sizes), key=size_number))
        raise ConfigError(
            f"{table.source}: --target-size {size}: fewer than two mixtures were run there, and {len(many)} at "
            f"{FEWEST_SIZES} sizes or more (the sizes are: {known}); run at least two mixtures at {size}, or two at "
            f"{FEWEST_SIZES} other sizes each"
        )
    carried = [rows for rows in members if len(set(sizes[rows])) >= 2]
    losses = np.full((len(carried), len(table.losses)), np.nan)
    for column, loss in enumerate(table.losses):
        curves = [_curve(sizes[rows], table.loss_values[rows, column]) for rows in carried]
        exponent = _shared_exponent(curves, target)
        if exponent is None:
            notes.append(f"sizes: loss_{loss} has no two mixtures measured at {FEWEST_SIZES} sizes: left out")
            continue
        losses[:, column] = [_at_target(curve, exponent, target) for curve in curves]
        notes.append(
            f"sizes: loss_{loss} of {len(carried)} mixture(s) carried to {size} by E + B N^-{exponent:.2g}"
            + _back_test(curves)
        )
    notes.append(
        f"warning: no two mixtures were run at size {size}: all its losses are extrapolated, and the held-out errors "
        "below do not contain what that errs by; two or three runs there would show it"
    )
    rows = np.array([rows[np.argmax(sizes[rows])] for rows in carried])
    there = table.take(rows)
    return replace(there, loss_values=losses, model_sizes=(size,) * len(rows), seeds=("",) * len(rows))


def _curve(sizes: Array, values: Array) -> Curve:
    """Mean loss at each size, in the order of the sizes."""
    measured = np.isfinite(values)
    distinct = np.unique(sizes[measured])
    return distinct, np.array([values[measured & (sizes == one)].mean() for one in distinct])


def _shared_exponent(curves: list[Curve], target: float) -> float | None:
    """The exponent of least squares over the mixtures with three sizes; None with fewer than two of them."""
    long = [curve for curve in curves if len(curve[0]) >= FEWEST_SIZES]
    if len(long) < 2:
        return None
    misfit = [sum(power_fit(*curve, exponent, target)[1] for curve in long) for exponent in _EXPONENTS]
    return float(_EXPONENTS[int(np.argmin(misfit))])


def _at_target(curve: Curve, exponent: float, target: float) -> float:
    if len(curve[0]) < 2:
        return float("nan")
    return float(power_fit(*curve, exponent, target)[0].sum())


def _back_test(curves: list[Curve]) -> str:
    """How well the smaller sizes foretell the largest one, beside taking the largest of them; "" with three sizes."""
    largest = max(curve[0][-1] for curve in curves)
    shorter = [(sizes[:-1], values[:-1]) for sizes, values in curves if sizes[-1] == largest]
    ends = [values[-1] for sizes, values in curves if sizes[-1] == largest]
    exponent = _shared_exponent(shorter, largest)
    if exponent is None:
        return " (no back-test: it takes four sizes)"
    found = np.array([_at_target(curve, exponent, largest) for curve in shorter])
    stale = np.array([values[-1] if len(values) else np.nan for _, values in shorter])
    error, last = np.nanmean(np.abs(found - ends)), np.nanmean(np.abs(stale - ends))
    return f" (back-test, {largest:.3g} from the smaller sizes: error {error:.4f}, the largest of them {last:.4f})"
