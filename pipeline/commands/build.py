"""`plantmix build`: check everything that can be checked before work, run FLOW, say what came of it."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manifests import storage
from manifests.catalog import Catalog
from manifests.errors import ConfigError
from pipeline.commands.parsing import Commands, add_command
from pipeline.config import BuildConfig, read_config
from pipeline.flow import FLOW
from pipeline.runner.runner import FROM_TOO_LATE, BuildReport, Runner, stop_on_sigterm
from pipeline.runner.work import Stage
from pipeline.scoring.scorers import check_scorers
from pipeline.sources.reading import check_source
from pipeline.stages.dedup_semantic import check_semantic
from pipeline.stages.mix import read_ratio
from pipeline.vocabulary.backbone import check_backbone

log = logging.getLogger("plantmix.build")


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `build` to the command line."""
    parser = add_command(
        commands,
        "build",
        "run every stage to a sealed release; run again after any interruption, it continues",
        "plantmix build configs/pipeline/demo.yaml --to select",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the run")
    parser.add_argument("--from", dest="first", metavar="STAGE", help="start here; earlier stages must be done already")
    parser.add_argument("--to", dest="last", metavar="STAGE", help="stop after this stage")
    parser.add_argument("--ray-address", metavar="ADDRESS", help="a running Ray cluster, over run.ray_address")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    return build(args.config, args.first, args.last, args.ray_address)


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


def build(
    config_path: str,
    first: str | None,
    last: str | None,
    ray_address: str | None,
    too_late: str = FROM_TOO_LATE,
) -> int:
    """Run a configuration to a sealed release (or up to a stage) and print the result; returns the exit code.

    Raises: ConfigError with `too_late` when a stage before `first` is not done yet, and as the runner does.
    """
    config = read_config(config_path)
    if ray_address is not None:
        config = config.model_copy(update={"run": config.run.model_copy(update={"ray_address": ray_address})})
    first, last = find_stage(FLOW, first, "--from"), find_stage(FLOW, last, "--to")
    check_order(FLOW, first, last)
    check_config(config)
    stop_on_sigterm()
    with Catalog.open(config.work_dir) as catalog:
        catalog.record_config(config.model_dump_json())
        report = Runner(config, FLOW, catalog).run(first, last, too_late)
    _say(config, report)
    return 0


def _say(config: BuildConfig, report: BuildReport) -> None:
    if report.redone:
        print(f"done in {report.seconds:.1f} s: {', '.join(report.redone)}")
    else:
        print(f"nothing to do: every stage of this configuration is sealed already ({report.seconds:.1f} s)")
    if report.release is not None:
        print(f"release: {storage.join(config.work_dir, report.release)}")


def find_stage(flow: Sequence[Stage[Any]], name: str | None, option: str) -> str | None:
    """Check a stage's name given on the command line.

    Raises: ConfigError naming the stages there are.
    """
    if name is not None and name not in [stage.name for stage in flow]:
        raise ConfigError(f"{option}: no stage '{name}'; the flow is {', '.join(stage.name for stage in flow)}")
    return name


def check_order(flow: Sequence[Stage[Any]], first: str | None, last: str | None) -> None:
    """Make sure that --from does not lie behind --to.

    Raises: ConfigError naming the order of the flow.
    """
    names = [stage.name for stage in flow]
    if first is not None and last is not None and names.index(first) > names.index(last):
        raise ConfigError(f"--from {first} lies behind --to {last}; the flow is {', '.join(names)}")


def check_writable(workdir: str) -> None:
    """Make sure that the work folder can be made, without making it.

    Raises: ConfigError when it cannot.
    """
    if storage.is_remote(workdir):
        raise ConfigError(f"work_dir {workdir}: must be a local folder: the catalogue is a local DuckDB file")
    place = Path(workdir).absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"work_dir {workdir}: {place} is not a folder; choose another place")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"work_dir {workdir}: {place} is not writable; choose another place or mend its permissions")
