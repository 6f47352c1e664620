"""`plantmix mix`: another mixture from the pool alone, or a look at what it would be before anything is written.

Reads the configuration and what select kept in the work folder. A dry run writes nothing; without it the stages
select, mix and pack run, which read measurements and the pool and ask the web for nothing. Where the takedown list or a
setting of select is another one than when select ran, both go by what select keeps now.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from manifests.errors import ConfigError
from manifests.reader import open_reader, paths_of_current
from manifests.takedowns import read_list
from pipeline.commands.build import build
from pipeline.commands.parsing import Commands, add_command
from pipeline.commands.status import mixture_lines
from pipeline.config import BuildConfig, read_config
from pipeline.runner.inputs import identity_of
from pipeline.runner.work import Execution
from pipeline.stages.mix import describe_quotas, plan_mixture, read_ratio
from pipeline.stages.select import Choice, SelectInputs, decide
from pipeline.store.files import Files

_TOO_LATE = (
    "mix: the stage '{stage}' is not done yet with this configuration; run `plantmix build` with it: what is done is "
    "reused"
)


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `mix` to the command line."""
    parser = add_command(
        commands,
        "mix",
        "draw another mixture from what is in the pool and pack it, without one download",
        "plantmix mix configs/pipeline/demo.yaml --dry-run",
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
    return build(args.config, "select", None, None, _TOO_LATE)


def describe_plan(config: BuildConfig) -> list[str]:
    """What the mixture of a configuration would draw from the last selection, as lines.

    Raises: ConfigError when nothing is selected yet, or when the pools cannot give the mixture.
    """
    kept, told = _read_kept(config)
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
        f"{told}; if sources or caption rules changed since, run `plantmix build --to select` first",
        "nothing was written",
    ]
    if config.pack.kind == "stratified" and ratio is not None:
        lines.insert(-2, "stratified: every pool is packed whole, once; the target is what readers are told to draw")
    return lines


def _read_kept(config: BuildConfig) -> tuple[dict[str, dict[str, int]], str]:
    """Selected samples, domain -> source -> number, and words that say as of when.

    Raises: ConfigError when nothing is selected yet.
    """
    workdir = config.work_dir
    with open_reader(workdir) as connection:
        sealed: Sequence[Any] = connection.sql(
            "SELECT sealed_at, identity FROM current_stages JOIN stages USING (fingerprint) "
            "WHERE stages.stage = 'select' AND sealed_at IS NOT NULL"
        ).fetchall()
        if not sealed:
            raise ConfigError(
                f"{workdir}: nothing is selected here yet; run `plantmix build CONFIG --to select` first, "
                "then look at the mixture"
            )
        ((sealed_at, identity),) = sealed
        choice = Choice.of(config, read_list(workdir))
        if json.loads(json.dumps(identity_of(choice))) == json.loads(identity).get("choice"):
            kept: dict[str, dict[str, int]] = {}
            for domain, source, num in connection.sql(
                "SELECT domain, source, count(*) FROM decisions JOIN candidates USING (sample_id) WHERE keep "
                "GROUP BY ALL ORDER BY ALL"
            ).fetchall():
                kept.setdefault(domain, {})[source] = num
            return kept, f"pools as select left them at {sealed_at:%Y-%m-%d %H:%M} UTC"
        tables = {
            table: tuple(paths_of_current(connection, workdir, stage, table))
            for stage, names in _MEASURED.items()
            for table in names
        }
    return _select_now(choice, tables, config.run.memory_gb), (
        f"pools as select leaves them now, by other takedowns or settings than at {sealed_at:%Y-%m-%d %H:%M} UTC"
    )


_MEASURED = {
    "ingest": ("candidates",),
    "fetch": ("facts",),
    "caption": ("captions", "caption_verdicts"),
    "dedup": ("pairs", "leaks", "semantic_pairs"),
    "score": ("score_verdicts",),
}


def _select_now(choice: Choice, tables: Mapping[str, tuple[str, ...]], memory_gb: float) -> dict[str, dict[str, int]]:
    """What select would keep, decided in a private folder that is gone afterwards."""
    inputs = SelectInputs(choice=choice, **{table: Files(paths) for table, paths in tables.items()})
    with tempfile.TemporaryDirectory() as scratch:
        result = decide(inputs, Execution(scratch, memory_gb, "dry-run", None))
    kept: dict[str, dict[str, int]] = result.notes["sources"]
    return kept
