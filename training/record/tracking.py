"""The figures of a run in TensorBoard and Weights & Biases, beside `log.jsonl`.

Takes the events of the run's log and writes their numbers to RUN/tensorboard or to wandb (RUN/wandb). Both packages are
optional, and imported only when wanted. Gives up with ConfigError, before the first step, where one is missing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from manifests.errors import ConfigError
from manifests.services.packages import require
from training.config import LogSettings, WandbSettings

TENSORBOARD_FOLDER = "tensorboard"
WANDB_FOLDER = "wandb"
_GROUPS = {"step": "train", "validation": "validation"}  # events with numbers, and the group that shows them


class Tracker(NamedTuple):
    """Takes the numbers of a step by name and shows them somewhere; `close` writes what is buffered."""

    add: Callable[[dict[str, float], int], object]
    close: Callable[[], object]


def scalars_of(event: str, values: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of an event by the name that shows them; none for events without numbers."""
    if event not in _GROUPS:
        return {}
    group = _GROUPS[event]
    scalars: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            scalars |= {f"{group}/{name}/{inner}": float(number) for inner, number in value.items()}
        elif name != "step" and isinstance(value, int | float):
            scalars[f"{group}/{name}"] = float(value)
    return scalars


def check_packages(settings: LogSettings) -> None:
    """Raise ConfigError when a wanted package is missing."""
    for name, is_on in (("tensorboard", settings.tensorboard), ("wandb", settings.wandb is not None)):
        if is_on:
            require(f"log.{name}", name)


def open_trackers(folder: Path, step: int, settings: LogSettings, config: dict[str, Any]) -> list[Tracker]:
    """Return the trackers of a config. The run goes on after `step`; what TensorBoard shows after it is removed.

    Raises: ConfigError when wandb refuses.
    """
    trackers: list[Tracker] = []
    if settings.tensorboard:
        trackers.append(_tensorboard(folder, step))
    if settings.wandb is not None:
        trackers.append(_wandb(folder, settings.wandb, config))
    return trackers


def _tensorboard(folder: Path, step: int) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=step + 1)

    def add(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return Tracker(add, writer.close)


def _wandb(folder: Path, settings: WandbSettings, config: dict[str, Any]) -> Tracker:
    import wandb

    try:
        run: Any = wandb.init(
            project=settings.project,
            name=os.environ.get("WANDB_NAME") or folder.name,
            dir=str(folder),
            config=config,
            id=hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16],
            resume="allow",
        )
    except wandb.errors.Error as error:
        raise ConfigError(f"log.wandb: {error}; log in, or set WANDB_MODE=offline") from None
    return Tracker(lambda values, step: run.log(values, step=step), run.finish)
