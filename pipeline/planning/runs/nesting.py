"""From short and small runs to the long and large one: which runs belong together, and how losses carry over.

Reads and writes nothing. Gives up with ConfigError when the table mixes settings and the user has not said what is
wanted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from manifests.errors import ConfigError
from pipeline.planning.runs.folds import FoldPlan
from pipeline.planning.runs.run_table import RunsTable
from pipeline.planning.runs.size_maps import carry_to_size
from pipeline.planning.runs.step_laws import carry_to_step

_SCALES = {"k": 1e3, "K": 1e3, "m": 1e6, "M": 1e6, "b": 1e9, "B": 1e9, "G": 1e9}


@dataclass(frozen=True)
class Nested:
    """One table at the target setting, how it came about, and the folds that test it."""

    table: RunsTable
    notes: tuple[str, ...] = ()
    plan: FoldPlan | None = None  # None when nothing was carried over between sizes


def require_one_setting(table: RunsTable) -> None:
    """Losses of different sizes and steps do not lie on one law.

    Raises: ConfigError that lists the settings and says how to keep one or to nest them.
    """
    counts = Counter(map(_condition, table.model_sizes.tolist(), table.steps.tolist()))
    if len(counts) == 1:
        return
    most = counts.most_common(4)
    shown = "; ".join(f"{condition}: {count} runs" for condition, count in most)
    more = f"; and {len(counts) - 4} more" if len(counts) > 4 else ""
    raise ConfigError(
        f"{table.source}: the runs have {len(counts)} different settings, whose losses do not lie on one law: "
        f'{shown}{more}. Keep one, e.g. --where "{most[0][0]}", or carry the others over with --target-size and '
        "--target-step"
    )


def _condition(size: str, step: float) -> str:
    """A setting as a condition, e.g. "model_size = '410M' AND step = 60000"."""
    parts = [f"model_size = '{size}'"] if size else []
    parts += [f"step = {step:g}"] if np.isfinite(step) else []
    return " AND ".join(parts) or "no model_size, no step"


def nest_runs(table: RunsTable, target_size: str | None, target_step: float | None) -> Nested:
    """Carry every run to one size and step: first by a power law in steps, then by an affine map between sizes.

    Without `target_size` the largest size is the target, without `target_step` the last step of that size. What
    was measured at the target stays as it is.

    Raises: ConfigError for a target that no run can be carried to.
    """
    size = target_size if target_size is not None else max(table.model_sizes.tolist(), key=_size_order)
    steps = table.steps[table.model_sizes == size]
    if target_step is None and np.isfinite(steps).any():
        target_step = float(np.nanmax(steps))
    notes: list[str] = []
    at_step = table if target_step is None else carry_to_step(table, target_step, notes)
    sizes = sorted(set(at_step.model_sizes.tolist()), key=_size_order)
    if sizes == [size]:
        return Nested(at_step, tuple(notes))
    smaller = [name for name in reversed(sizes) if name != size]
    joint, plan = carry_to_size(at_step, size, smaller, notes)
    return Nested(joint, tuple(notes), plan)


def _size_order(name: str) -> tuple[float, str]:
    """70M before 410M before 1B; a name that is no number comes first."""
    number = name[:-1] if name[-1:] in _SCALES else name
    try:
        return float(number) * _SCALES.get(name[-1:], 1.0), name
    except ValueError:
        return -1.0, name
