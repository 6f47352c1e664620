"""`plantmix build`: check all that can be checked before work, run FLOW, print what was made."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from manifests.contract.catalog import Catalog
from manifests.errors import ConfigError, RunError
from manifests.services.packages import require
from manifests.stores import storage
from manifests.stores.folder import place_of
from pipeline.answers.endings import check_ending, check_passing
from pipeline.answers.preflight import check_config
from pipeline.commands import CONFIG_HELP, Commands, add_command
from pipeline.config import BuildConfig, read_config
from pipeline.engine.runner import Runner
from pipeline.engine.stopping import StopRequests
from pipeline.engine.work import BuildContext, Stage
from pipeline.flow import FLOW
from pipeline.releases.opening import open_release
from pipeline.sources.reading import prepare

log = logging.getLogger("plantmix.build")


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `build` to the command line."""
    parser = add_command(
        commands,
        "build",
        "download, deduplicate, filter, mix and pack; run it again after any interruption and it goes on",
        "plantmix build configs/pipeline/demo.yaml",
        reads="CONFIG, its sources, and the web, politely",
        writes="the work folder that CONFIG names: catalogue, tables, pool, releases",
    )
    parser.add_argument("config", metavar="CONFIG", help=CONFIG_HELP)
    stages = ", ".join(stage.name for stage in FLOW)
    parser.add_argument(
        "--from", dest="first", metavar="STAGE", help=f"begin at this stage; those before it must be done ({stages})"
    )
    parser.add_argument("--to", dest="last", metavar="STAGE", help="stop after this stage")
    parser.add_argument("--ray-address", metavar="ADDRESS", help="a running Ray cluster, in place of run.ray.address")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    return build(args.config, args.first, args.last, args.ray_address)


def build(config_path: str, first: str | None, last: str | None, ray_address: str | None) -> int:
    """Run a configuration to a sealed release (or up to a stage) and print the result; returns the exit code.

    Raises: as the runner does.
    """
    config = read_config(config_path)
    if ray_address is not None:
        ray = config.run.ray.model_copy(update={"address": ray_address})
        config = config.model_copy(update={"run": config.run.model_copy(update={"ray": ray})})
    check_span(FLOW, first, last)
    named = ((config.sources, "source"), (config.evaluation, "evaluation set"))
    checked = [f"{len(checks):,} {what if len(checks) == 1 else what + 's'}" for checks, what in named if checks]
    log.info("%s: checking %s before any host is asked", config_path, " and ".join(checked))
    release = build_config(config, first, last)
    if release is not None:
        open_release(release)  # no stage reads it, so nothing above has seen damage to it
    return 0


def build_config(
    config: BuildConfig, first: str | None = None, last: str | None = None, as_sealed: Collection[str] = ()
) -> str | None:
    """As `build`, of a configuration that is read already; returns the release. `as_sealed` as in `Runner.run`."""
    require("a build", "pycurl", "threadpoolctl")  # of the extra that brings all of it
    for warning in check_config(config, last) if not as_sealed else ():
        log.warning("warning: %s", warning)
    stop = StopRequests()
    with stop.listening(), Catalog.open(config.work_dir) as catalog:
        origins = [*config.sources, *config.evaluation]
        if not as_sealed and prepare(origins, config.fetch.network.user_agent_header, os.environ):
            for warning in check_config(config, last):  # now of the archives too
                log.warning("warning: %s", warning)
        after = partial(_check_ending, config, last)
        report = Runner(config, FLOW, catalog, stop, after).run(first, last, as_sealed)
    if report.redone:
        print(f"done in {report.seconds:.1f} s: {', '.join(report.redone)}")
    else:
        print(f"nothing to do: every stage of this configuration is sealed already ({report.seconds:.1f} s)")
    release = place_of(config.work_dir, report.release) if report.release is not None else None
    if release is not None:
        print(f"look at it: plantmix browse {config.work_dir}, or open {storage.join(release, 'report.html')}")
        print(f"release: {release}")
    return release


def _check_ending(config: BuildConfig, last: str | None, context: BuildContext, stage: str, is_new: bool) -> None:
    """Stop when pictures are missing that could be had, or the mixture cannot be drawn any more.

    A build that ends before the mixture only says so.
    """
    try:
        check_passing(config, context, stage)
        check_ending(config, context, stage, is_new)
    except (ConfigError, RunError) as error:
        if last is None or last in ("mix", "pack"):
            raise
        if stage == last:
            log.warning("warning: %s", error)


def check_span(flow: Sequence[Stage[Any]], first: str | None, last: str | None) -> None:
    """Raise ConfigError for a stage that is not in the flow, or for --from after --to."""
    names = [stage.name for stage in flow]
    for option, name in (("--from", first), ("--to", last)):
        if name is not None and name not in names:
            raise ConfigError(f"{option}: no stage '{name}'; the flow is {', '.join(names)}")
    if first is not None and last is not None and names.index(first) > names.index(last):
        raise ConfigError(f"--from {first} comes after --to {last}; the flow is {', '.join(names)}")
