"""The executor that a config names: this process, processes beside it, or Ray."""

from __future__ import annotations

from pipeline.config import BuildConfig
from pipeline.engine.executing import InlineExecutor
from pipeline.engine.on_processes import ProcessExecutor
from pipeline.engine.on_ray import RayExecutor

Executor = InlineExecutor | ProcessExecutor | RayExecutor
"""Where jobs run: in this process, in others of this machine, or on Ray."""


def start_executor(config: BuildConfig, workdir: str) -> Executor:
    """Start what `run.executor` names."""
    run = config.run
    if run.executor == "inline":
        return InlineExecutor()
    if run.executor == "processes":
        return ProcessExecutor(run.num_workers)
    places = {origin.reader.path: origin.config_key for origin in (*config.sources, *config.evaluation)}
    return RayExecutor(run.num_workers, run.ray, workdir, places)
