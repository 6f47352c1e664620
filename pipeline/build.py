"""`plantmix build`: check everything that can be checked before work, run FLOW, say what came of it."""

from __future__ import annotations

import logging

from manifests import storage
from manifests.catalog import Catalog
from pipeline.captions.backbone import check_backbone
from pipeline.config import BuildConfig, read_config
from pipeline.flow import FLOW
from pipeline.runner import BuildReport, Runner, check_order, check_writable, find_stage, stop_on_sigterm
from pipeline.scoring.scorers import check_scorers
from pipeline.sources.reading import check_source
from pipeline.stages.mix import read_ratio
from pipeline.stages.semantic import check_semantic

log = logging.getLogger("plantmix.build")


def check_config(config: BuildConfig) -> None:
    """All that a user may have got wrong and that can be seen before any work.

    Raises: ConfigError; nothing has been written then.
    """
    check_writable(config.work_dir)
    for source in [*config.sources, *config.evaluation]:
        check_source(source)
    read_ratio(config.mix, config.domains)
    check_backbone(config.caption.backbone)
    check_scorers(config.score)
    if config.dedup.semantic is not None:
        check_semantic(config.dedup.semantic)


def build(config_path: str, first: str | None, last: str | None, ray_address: str | None) -> int:
    """Run a configuration to a sealed release (or up to a stage) and print the result; returns the exit code."""
    config = read_config(config_path)
    if ray_address is not None:
        config = config.model_copy(update={"run": config.run.model_copy(update={"ray_address": ray_address})})
    first, last = find_stage(FLOW, first, "--from"), find_stage(FLOW, last, "--to")
    check_order(FLOW, first, last)
    check_config(config)
    stop_on_sigterm()
    with Catalog.open(config.work_dir) as catalog:
        catalog.record_config(config.model_dump_json())
        report = Runner(config, FLOW, catalog).run(first, last)
    _say(config, report)
    return 0


def _say(config: BuildConfig, report: BuildReport) -> None:
    if report.redone:
        print(f"done in {report.seconds:.1f} s: {', '.join(report.redone)}")
    else:
        print(f"nothing to do: every stage of this configuration is sealed already ({report.seconds:.1f} s)")
    if report.release is not None:
        print(f"release: {storage.join(config.work_dir, report.release)}")
