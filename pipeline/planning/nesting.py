"""From short and small runs to the long and large one: which runs belong together, and how losses carry over.

Reads and writes nothing. Gives up with ConfigError when the table mixes settings and the user has not said what
is wanted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from manifests.errors import ConfigError
from pipeline.planning.crossval import FoldPlan
from pipeline.planning.runs import RunsTable
from pipeline.planning.size_laws import extrapolate_to_size, size_number
from pipeline.planning.size_maps import carry_to_size, stack_runs
from pipeline.planning.step_laws import carry_to_step

Setting = tuple[str, float]
"""(model_size, step); "" and nan where the table does not say."""


def settings_of(table: RunsTable) -> list[Setting]:
    """The setting of each run."""
    return [(size, float(step)) for size, step in zip(table.model_sizes, table.steps, strict=True)]


def describe_setting(setting: Setting) -> str:
    """A setting in words, e.g. "model_size 410M, step 60000"."""
    size, step = setting
    parts = [f"model_size {size}"] if size else []
    parts += [f"step {step:g}"] if np.isfinite(step) else []
    return ", ".join(parts) or "no model_size, no step"


def require_one_setting(table: RunsTable) -> None:
    """Losses of different sizes and steps do not lie on one law.

    Raises: ConfigError that lists the settings and says how to keep one or to nest them.
    """
    counts = Counter((size, repr(step)) for size, step in settings_of(table))
    if len(counts) == 1:
        return
    most = counts.most_common(4)
    shown = "; ".join(f"{describe_setting((size, float(step)))}: {count} runs" for (size, step), count in most)
    more = f"; and {len(counts) - 4} more" if len(counts) > 4 else ""
    (size, step), _ = most[0]
    conditions = [f"model_size = '{size}'"] if size else []
    conditions += [f"step = {float(step):g}"] if np.isfinite(float(step)) else []
    raise ConfigError(
        f"{table.source}: the runs have {len(counts)} different settings, whose losses do not lie on one law: "
        f'{shown}{more}. Keep one, e.g. --where "{" AND ".join(conditions)}", or carry the others over with '
        f"--target-size and --target-step"
    )


@dataclass(frozen=True)
class Nested:
    """One table at the target setting, how it came about, and the folds that test it honestly."""

    table: RunsTable
    notes: tuple[str, ...]
    plan: FoldPlan | None  # None when nothing was carried over between sizes


def nest_runs(table: RunsTable, target_size: str | None, target_step: float | None) -> Nested:
    """Carry every run to one size and step: first a power law in steps, then an affine map between sizes.

    Without `target_size` the largest size is the target, without `target_step` the last step of that size. What
    was measured at the target stays as it is. A target size at which fewer than two mixtures were run is reached by
    a power law in size, for the mixtures run at several sizes; the affine map then carries the others.

    Raises: ConfigError for a target that no run can be carried to.
    """
    size = target_size if target_size is not None else max(table.model_sizes, key=_size_order)
    nearest = size if size in table.model_sizes else max(table.model_sizes, key=_size_order)
    steps = table.steps[np.array([name == nearest for name in table.model_sizes])]
    if target_step is None and np.isfinite(steps).any():
        target_step = float(np.nanmax(steps))
    notes: list[str] = []
    at_step = table if target_step is None else carry_to_step(table, target_step, notes)
    sizes = sorted(set(at_step.model_sizes), key=_size_order)
    if size in table.model_sizes and size not in sizes:
        raise ConfigError(f"no run of size {size} can be carried to step {target_step:g}; choose an earlier step")
    if sizes == [size]:
        return Nested(at_step, tuple(notes), None)
    there = at_step.shares[np.array([name == size for name in at_step.model_sizes])]
    if len(np.unique(np.round(there, 6), axis=0)) < 2:
        other = np.array([name != size for name in at_step.model_sizes])
        at_step = stack_runs([extrapolate_to_size(at_step, size, notes), at_step.take(other)])
    smaller = [name for name in reversed(sizes) if name != size]
    joint, plan = carry_to_size(at_step, size, smaller, notes)
    return Nested(joint, tuple(notes), plan)


def _size_order(name: str) -> tuple[float, str]:
    """70M before 410M before 1B; a name that is no number comes first."""
    return size_number(name), name
