"""`plantmix mix`: another mixture from the pool alone, or a look at what it would be before anything is written.

Reads the configuration and what select kept in the work folder. A dry run writes nothing; without it the stages
mix and pack run, which read the pool and ask the web for nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from manifests.errors import ConfigError
from pipeline.config import BuildConfig, read_config


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mix` to the command line."""
    about = "draw another mixture from what is in the pool and pack it, without one download"
    parser = commands.add_parser(
        "mix",
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog="example: plantmix mix configs/pipeline/demo.yaml --dry-run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the run, with the new mixture")
    parser.add_argument(
        "--dry-run", action="store_true", help="only show counts and epochs a domain; nothing is written"
    )
    parser.set_defaults(func=_mix)


def _mix(args: argparse.Namespace) -> int:
    if args.dry_run:
        print("\n".join(describe_plan(read_config(args.config))))
        return 0
    from pipeline.build import build

    return build(args.config, "mix", None, None)


def describe_plan(config: BuildConfig) -> list[str]:
    """What the mixture of a configuration would draw from the last selection, as lines.

    Raises: ConfigError when nothing is selected yet, or when the pools cannot give the mixture.
    """
    from pipeline.stages.mix import describe_quotas, plan_mixture, read_ratio
    from pipeline.status import mixture_lines

    kept, sealed_at = _read_kept(config.work_dir)
    ratio = read_ratio(config.mix, config.domains)
    quotas, strata = plan_mixture(config.mix, ratio, kept, config.pack.kind)
    rows = describe_quotas(quotas, strata)
    total, heldout = (sum(row[name] for row in rows) for name in ("num_drawn", "num_heldout"))
    selected = sum(num for sources in kept.values() for num in sources.values())
    unused = selected - heldout - sum(min(row["num_drawn"], row["num_available"]) for row in rows)
    lines = [
        f"{config.name}, {config.pack.kind}: {total:,} training samples, {heldout:,} held out, {unused:,} kept samples "
        "left out",
        "",
        *mixture_lines(rows),
        "",
        f"pools as select left them at {sealed_at:%Y-%m-%d %H:%M} UTC; if sources or rules changed since, run "
        "`plantmix build --to select` first",
        "nothing was written",
    ]
    if config.pack.kind == "stratified" and ratio is not None:
        lines.insert(-2, "stratified: every pool is packed whole, once; the target is what readers are told to draw")
    return lines


def _read_kept(workdir: str) -> tuple[dict[str, dict[str, int]], Any]:
    from manifests.reader import open_reader

    with open_reader(workdir) as connection:
        sealed: Sequence[Any] = connection.sql(
            "SELECT sealed_at FROM current_stages JOIN stages USING (fingerprint) "
            "WHERE stages.stage = 'select' AND sealed_at IS NOT NULL"
        ).fetchall()
        if not sealed:
            raise ConfigError(
                f"{workdir}: nothing is selected here yet; run `plantmix build CONFIG --to select` first, "
                "then look at the mixture"
            )
        kept: dict[str, dict[str, int]] = {}
        for domain, source, num in connection.sql(
            "SELECT domain, source, count(*) FROM decisions JOIN candidates USING (sample_id) WHERE keep "
            "GROUP BY ALL ORDER BY ALL"
        ).fetchall():
            kept.setdefault(domain, {})[source] = num
    return kept, sealed[0][0]
