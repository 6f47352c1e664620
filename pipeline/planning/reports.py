"""Reports of `plan fit` and `plan choose`: short tables, binding limits, and warnings.

Takes a law or a choice and returns text.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.planning.choose import Choice
from pipeline.planning.forms.catalogue import EXPONENTIAL, MEAN
from pipeline.planning.goals import NEAR_OPTIMAL_NATS, Goal
from pipeline.planning.laws import ColumnLaw, Law


def fit_report(law: Law) -> str:
    """Return a short table of what was fitted, how good it is, and what to beware of."""
    table = law.runs
    used = table.take(np.flatnonzero(np.isfinite(table.loss_values).any(axis=1)))
    width = max(len("loss"), *(len(column.loss) for column in law.columns))
    return "\n".join(
        [
            f"{used.num_runs} runs, {used.num_mixtures} mixtures of {len(law.domains)} domains: "
            + ", ".join(law.domains),
            f"law: {law.columns[0].describe_weights()}",
            "",
            f"{'loss':<{width}} {'cv error':>9} {'vs mean':>8} {'vs exponential':>15} {'noise floor':>12} "
            f"{'coverage of 90 %':>17}",
            *(_fit_line(column, width) for column in law.columns),
            "",
            *(f"warning: {warning}" for warning in law.warnings),
        ]
    )


def _fit_line(column: ColumnLaw, width: int) -> str:
    to_mean, to_exponential = (column.error / max(column.form_errors[name], 1e-12) for name in (MEAN, EXPONENTIAL))
    floor = "unknown" if math.isnan(column.noise_floor) else f"{column.noise_floor:.4f}"
    shown = f"{column.error:.4f}" if column.error >= 0.0005 else f"{column.error:.1e}"
    return (
        f"{column.loss:<{width}} {shown:>9} {to_mean:>7.2f}x {to_exponential:>14.2f}x {floor:>12} "
        f"{column.coverage:>17.2f}"
    )


def choice_report(law: Law, goal: Goal, choice: Choice) -> str:
    """Return the chosen ratio, what it predicts, what binds, and what to beware of."""
    width = max(len("objective"), *(len(name) for name in (*law.domains, *law.losses)))
    near = f"within {NEAR_OPTIMAL_NATS:g} nats"
    lines = [f"{'domain':<{width}}  {'share':>7}  {'90 % interval':>17}  {near:>17}  {'epochs':>6}"]
    for k, domain in enumerate(law.domains):
        ends = "  ".join(f"{low:7.4f} to {high:.4f}" for low, high in (choice.interval[k], choice.near_optimal[k]))
        epochs = f"{choice.epochs[k]:6.2f}" if math.isfinite(choice.epochs[k]) else "     -"
        lines.append(f"{domain:<{width}}  {choice.shares[k]:7.4f}  {ends}  {epochs}")
    if choice.optimum is not None:
        named = ", ".join(f"{domain} {share:.4f}" for domain, share in zip(law.domains, choice.optimum, strict=True))
        lines += ["", f"nearest to the pools within {goal.near_pools_nats:g} nats of the optimum ({named})"]
    lines += ["", f"{'loss':<{width}}  {'predicted':>9}  {'90 % interval':>17}"]
    for name, (value, low, high) in [*choice.losses.items(), ("objective", choice.objective)]:
        lines.append(f"{name:<{width}}  {value:9.4f}  {low:7.4f} to {high:.4f}")
    lines.append("")
    lines += [f"binds: {line}" for line in choice.binding]
    lines += [f"warning: {warning}" for warning in choice.warnings]
    return "\n".join(lines)
