"""Reports of `plan fit` and `plan choose`: short tables, binding limits, and warnings.

Takes a law or a choice and returns text.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.planning.arrays import Array
from pipeline.planning.choose import Choice
from pipeline.planning.forms.catalogue import EXPONENTIAL, MEAN
from pipeline.planning.goals import NEAR_OPTIMAL_NATS, Goal
from pipeline.planning.laws import ColumnLaw, Law
from pipeline.planning.runs.checks import repeated_mixtures

_SHOWN = 4  # domains of a mixture, and mixtures


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
            f"{'loss':<{width}} {'cv error':>9} {'vs mean':>8} {'vs exponential':>15} {'noise':>9}",
            *(_fit_line(column, width) for column in law.columns),
            "",
            *_noise_lines(law),
            *(f"warning: {warning}" for warning in law.warnings),
        ]
    )


def _fit_line(column: ColumnLaw, width: int) -> str:
    to_mean, to_exponential = (column.error / max(column.form_errors[name], 1e-12) for name in (MEAN, EXPONENTIAL))
    floor = "unknown" if math.isnan(column.noise_floor) else f"{column.noise_floor:.4f}"
    shown = f"{column.error:.4f}" if column.error >= 0.0005 else f"{column.error:.1e}"
    return f"{column.loss:<{width}} {shown:>9} {to_mean:>7.2f}x {to_exponential:>14.2f}x {floor:>9}"


def _noise_lines(law: Law) -> list[str]:
    """Say where the noise was measured: replicates of one mixture say little of the noise at others."""
    repeated = repeated_mixtures(law.runs)
    if not len(repeated):
        return []
    shown = "; ".join(_in_words(law, shares) for shares in repeated[:_SHOWN])
    more = f" and {len(repeated) - _SHOWN} more" if len(repeated) > _SHOWN else ""
    return [f"noise: standard deviation between runs that repeat {shown}{more}", ""]


def _in_words(law: Law, shares_K: Array) -> str:
    """Return a mixture as "plant 0.4000, general 0.6000"; of many domains the largest."""
    largest = np.argsort(-shares_K, kind="stable")[:_SHOWN]
    named = ", ".join(f"{law.domains[k]} {shares_K[k]:.4f}" for k in sorted(largest))
    return named + (", ..." if len(shares_K) > _SHOWN else "")


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
    sizes = sorted({size for size in law.runs.model_sizes.tolist() if size})
    lines += ["", "losses are those of models like the runs" + (f" ({', '.join(sizes)})" if sizes else "")]
    lines += ["", *_gain_lines(law, choice), ""]
    lines += [f"binds: {line}" for line in choice.binding]
    lines += [f"warning: {warning}" for warning in choice.warnings]
    return "\n".join(lines)


def _gain_lines(law: Law, choice: Choice) -> list[str]:
    """Return the gains of a choice over mixtures that need no law, and the advice."""
    width = max([len("gain over"), *(len(gain.rival) for gain in choice.gains)])
    lines = [f"{'gain over':<{width}}  {'nats':>8}  {'90 % interval':>19}  mixture"] if choice.gains else []
    for gain in choice.gains:
        ends = f"{gain.low:8.4f} to {gain.high:7.4f}"
        lines.append(f"{gain.rival:<{width}}  {gain.value:8.4f}  {ends:>19}  {_in_words(law, gain.shares)}")
    return [*lines, f"advice: {choice.advice}"]
