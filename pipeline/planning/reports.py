"""What `plan fit` and `plan choose` print: short tables, what binds, and what to beware of.

Pure: a law or a choice in, text out.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.planning.choose import Chosen, Wish
from pipeline.planning.laws import ColumnLaw, Law, comparison


def fit_report(law: Law) -> str:
    """A short table of what was fitted, how good it is, and what to beware of."""
    table = law.runs
    used = table.take(np.flatnonzero(np.isfinite(table.loss_values).any(axis=1)))
    num_mixtures = int(used.mixture_groups().max()) + 1
    lines = [f"{used.num_runs} runs, {num_mixtures} mixtures of {len(law.domains)} domains: {', '.join(law.domains)}"]
    lines += list(law.nesting)
    width = max(len("loss"), *(len(column.loss) for column in law.columns))
    form_width = max(len("form chosen"), *(len(column.form) for column in law.columns))
    lines.append("")
    lines.append(
        f"{'loss':<{width}}  {'form chosen':<{form_width}} {'cv error':>9} {'vs mean':>8} {'vs exponential':>15} "
        f"{'noise floor':>12} {'coverage of 90 %':>17}"
    )
    lines += [_fit_line(column, width, form_width) for column in law.columns]
    lines.append("")
    lines += [f"warning: {warning}" for warning in law.warnings]
    return "\n".join(lines)


def _fit_line(column: ColumnLaw, width: int, form_width: int) -> str:
    to_mean, to_exponential = comparison(column)
    floor = "unknown" if math.isnan(column.noise_floor) else f"{column.noise_floor:.4f}"
    error = column.errors[column.form]
    shown = f"{error:.4f}" if error >= 0.0005 else f"{error:.1e}"
    return (
        f"{column.loss:<{width}}  {column.form:<{form_width}} {shown:>9} {to_mean:>7.2f}x "
        f"{to_exponential:>14.2f}x {floor:>12} {column.coverage:>17.2f}"
    )


def choice_report(law: Law, wish: Wish, chosen: Chosen) -> str:
    """The chosen ratio, what it predicts, what binds, and what to beware of."""
    width = max(len("objective"), *(len(name) for name in (*law.domains, *law.losses)))
    near = f"within {wish.near_optimal_nats:g} nats"
    lines = [f"{'domain':<{width}}  {'share':>7}  {'90 % interval':>17}  {near:>17}  {'epochs':>6}"]
    for k, domain in enumerate(law.domains):
        low, high = chosen.interval[k]
        least, most = chosen.region[k]
        epochs = chosen.epochs[k]
        shown = f"{epochs:6.2f}" if math.isfinite(epochs) else "     -"
        lines.append(
            f"{domain:<{width}}  {chosen.shares[k]:7.4f}  {low:7.4f} to {high:.4f}  {least:7.4f} to {most:.4f}  {shown}"
        )
    lines += ["", f"{'loss':<{width}}  {'predicted':>9}  {'90 % interval':>17}"]
    for name, (value, low, high) in chosen.losses.items():
        lines.append(f"{name:<{width}}  {value:9.4f}  {low:7.4f} to {high:.4f}")
    low, high = chosen.objective_interval
    lines += [f"{'objective':<{width}}  {chosen.objective:9.4f}  {low:7.4f} to {high:.4f}", ""]
    lines += [f"binds: {line}" for line in chosen.binding]
    lines += [f"warning: {warning}" for warning in chosen.warnings]
    return "\n".join(lines)
