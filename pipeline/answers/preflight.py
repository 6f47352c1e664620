"""Everything that a user may have got wrong and that can be seen before any work. Writes nothing."""

from __future__ import annotations

import os
from pathlib import Path

from manifests import storage
from manifests.errors import ConfigError
from pipeline.config import BuildConfig
from pipeline.scoring.scorers import check_scorers
from pipeline.sources.reading import check_source
from pipeline.stages.dedup_semantic import check_semantic
from pipeline.stages.mix import read_ratio
from pipeline.vocabulary.backbone import check_backbone


def check_config(config: BuildConfig) -> None:
    """Check the places, sources and models that a configuration names.

    Raises: ConfigError naming what is wrong.
    """
    check_writable(config.work_dir)
    for source in [*config.sources, *config.evaluation]:
        check_source(source)
    read_ratio(config.mix, config.domains)
    check_backbone(config.caption.backbone)
    check_scorers(config.score)
    if config.dedup.semantic is not None:
        check_semantic(config.dedup.semantic)


def check_writable(work_dir: str) -> None:
    """Check that the work folder can be made, without making it.

    Raises: ConfigError when it cannot.
    """
    if storage.is_remote(work_dir):
        raise ConfigError(f"work_dir {work_dir}: must be a local folder: the catalogue is a local DuckDB file")
    place = nearest_folder(work_dir)
    if not place.is_dir():
        raise ConfigError(f"work_dir {work_dir}: {place} is not a folder; choose another place")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"work_dir {work_dir}: {place} is not writable; choose another place or its permissions")


def nearest_folder(work_dir: str) -> Path:
    """The work folder where it exists, else the nearest place above it that does."""
    place = Path(work_dir).absolute()
    return next(folder for folder in (place, *place.parents) if folder.exists())
