"""From short and small runs to the long and large one: which runs belong together, and how losses carry over.

Reads and writes nothing. Gives up with ConfigError when the table mixes settings and the user has not said what
is wanted.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from manifests.errors import ConfigError
from pipeline.planning.runs import RunsTable

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
