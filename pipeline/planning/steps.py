"""design, fit and choose as commands: read the options, plan, write the files, print short tables.

`plantmix plan` and `python -m pipeline.planning` are these steps with another `Access`. Faults of the user leave as
ConfigError; the command line prints them and exits with 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError, RunError
from pipeline.planning.amounts import parse_amounts, parse_number, split_items
from pipeline.planning.choose import choose_mixture
from pipeline.planning.design import design_notes, design_table, propose_runs
from pipeline.planning.files import json_content, law_to_json, mixture_to_json, read_law, read_ratio
from pipeline.planning.goals import Constraint, Goal
from pipeline.planning.laws import fit_law
from pipeline.planning.limits import Limits, share_box
from pipeline.planning.reports import choice_report, fit_report
from pipeline.planning.runs.checks import require_one_setting
from pipeline.planning.runs.groups import Groups, expand_domains, merge_limits, name_group
from pipeline.planning.runs.run_table import MAX_DOMAINS, MIN_DOMAINS, RunsTable


@dataclass(frozen=True)
class Access:
    """Access of the steps to tables, files and plots: the planner itself has no package for them."""

    read_runs: Callable[[str, str | None], RunsTable]
    """From a path and a filter in SQL."""
    write: Callable[[str, bytes, Callable[[bytes], bool]], None]
    """To a path that holds nothing, or what the last argument knows as a file of the same kind."""
    plotter: Callable[[str], Callable[[dict[str, Any]], None]]
    """Checks the path of a plot, and gives what draws a mixture there."""


def add_steps(steps: Any, add_command: Callable[..., argparse.ArgumentParser], access: Access, program: str) -> None:
    """Add the three commands; `add_command` makes a parser of name, about, example, `reads` and `writes`."""
    for name, about, example, reads, writes, add_options, run in (
        ("design", "propose the next proxy runs", "--domains plant,general --budget 8 --out design.csv",
         "RUNS, where given", "a table of runs to do", _design_options, _design),
        ("fit", "fit a mixing law to proxy runs",
         "RUNS.csv --out LAW.json --where \"model_size = '410M' AND step = 60000\"",
         "RUNS", "LAW.json", _fit_options, _fit),
        ("choose", "choose a ratio under real limits",
         'LAW.json --objective plant --constraint "general<=1%" --out mixture.json',
         "LAW.json", "mixture.json and the plot", _choose_options, _choose),
    ):  # fmt: skip
        parser = add_command(steps, name, about, f"{program} {name} {example}", reads=reads, writes=writes)
        add_options(parser)
        parser.set_defaults(func=partial(run, access))


def _design_options(parser: argparse.ArgumentParser) -> None:
    text = "domains, comma-separated; with --keep: the new domains only; with --runs: may be left out"
    parser.add_argument("--domains", "--free", metavar="NAMES", help=text)
    text = "a mixture of `plan choose`, planned as one domain: the ratios within it stay as they are"
    parser.add_argument("--keep", metavar="MIXTURE", help=text)
    parser.add_argument("--budget", type=int, required=True, metavar="N", help="how many runs to propose")
    parser.add_argument("--runs", metavar="RUNS", help="runs that are done: mixtures unlike theirs are proposed")
    _add_row_options(parser)
    text = "with --runs: put half of the budget where the optimum of these losses is most uncertain"
    parser.add_argument("--objective", action="append", metavar="LOSS=WEIGHT", help=text)
    parser.add_argument("--replicates", type=int, metavar="N", help="how many runs of the budget repeat a mixture")
    _add_limits(parser)
    parser.add_argument("--proxy-samples", metavar="N", help="samples seen by one proxy run")
    parser.add_argument("--out", required=True, metavar="DESIGN.csv", help="the list of runs for `dalip proxies`")


def _fit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUNS", help="csv, parquet, or a work folder with the runs of `dalip proxies`")
    parser.add_argument("--out", required=True, metavar="LAW.json", help="where the law goes")
    _add_row_options(parser)


def _choose_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("law", metavar="LAW.json", help="from `plan fit`")
    text = 'losses to minimise with weights: "plant=1,general=1"'
    parser.add_argument("--objective", required=True, action="append", metavar="LOSS=WEIGHT", help=text)
    text = '"general<=1%%" (above its best) or "general<=3.2"; repeatable'
    parser.add_argument("--constraint", action="append", metavar="LOSS<=LIMIT", help=text)
    _add_limits(parser)
    parser.add_argument("--max-epochs", action="append", metavar="DOMAIN=N", help="most passes over a domain's pool")
    text = "of all mixtures at most NATS worse than the best, take the nearest to the pools' shares of all data"
    parser.add_argument("--near-pools", metavar="NATS", help=text)
    text = (
        "R*: after about how many passes repeated samples lose their value (15.4 was measured on text); "
        "none: never, which fits pool-matched proxy runs"
    )
    parser.add_argument("--repetition-scale", default="15.4", metavar="R", help=text)
    parser.add_argument(
        "--bootstrap", type=int, default=120, metavar="B", help="laws drawn for the interval (default: 120)"
    )
    parser.add_argument("--out", required=True, metavar="mixture.json", help="where the ratio goes, for `mix`")
    parser.add_argument("--plot", metavar="FILE", help="draw the choice, a picture (.png)")
    text = "write the mixture even if the law fails its held-out test or was not tested for so many passes"
    parser.add_argument("--accept-untrusted", action="store_true", help=text)


def _add_row_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--where", metavar="SQL", help="keep only these runs, a condition on the table's columns")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    text = "distinct samples of a domain in the full data, e.g. plant=10M"
    parser.add_argument("--pool", action="append", metavar="DOMAIN=N", help=text)
    parser.add_argument("--samples", metavar="N", help="samples seen over the whole full training")
    parser.add_argument("--min-share", action="append", metavar="DOMAIN=R", help="least share, e.g. plant=0.1")
    parser.add_argument("--max-share", action="append", metavar="DOMAIN=R", help="largest share, e.g. web=0.3")


def _design(access: Access, args: argparse.Namespace) -> int:
    table = access.read_runs(args.runs, args.where) if args.runs else None
    domains, groups = _domains(args, table)
    limits = _limits(args)
    proxy_samples = parse_optional("--proxy-samples", args.proxy_samples)
    if proxy_samples is not None and proxy_samples < 1:
        raise ConfigError(f"--proxy-samples is {args.proxy_samples}; it must be at least 1")
    objective = parse_objective(args.objective) if args.objective else {}
    box = share_box(domains, merge_limits(limits, groups), {})
    proposed = propose_runs(domains, args.budget, box, table, objective, args.replicates)
    num_before = 0 if table is None else table.num_runs
    text, lines = design_table(domains, proposed, limits, proxy_samples, num_before, groups)
    lines += design_notes(domains, proposed, args.budget, table)
    access.write(
        args.out, text.encode(), lambda content: content.startswith(b"run,reason,") and b"loss_" not in content
    )
    print("\n".join(lines))
    print(f"design: {args.out}")
    return 0


def _fit(access: Access, args: argparse.Namespace) -> int:
    table = access.read_runs(args.runs, args.where)
    require_one_setting(table)
    law = fit_law(table)
    _write_json(access, law_to_json(law), args.out)
    print(fit_report(law))
    print(f"law: {args.out}")
    return 0


def _choose(access: Access, args: argparse.Namespace) -> int:
    law, sha256 = read_law(args.law)
    goal = _goal(args, expand_domains(law.domains, law.runs.groups))
    draw = access.plotter(args.plot) if args.plot else None
    choice = choose_mixture(law, goal)
    failed = [line for line in law.warnings if line.startswith("DO NOT TRUST")]
    repeated = [line for line in choice.warnings if line.startswith("DO NOT TRUST this choice")]
    if (failed or repeated) and not args.accept_untrusted:
        print(choice_report(law, goal, choice))
        why = f"the law cannot be trusted ({len(failed)} of its losses are predicted worse than by their mean)"
        mend = "add runs and fit again"
        if not failed:
            why, mend = repeated[0].removeprefix("DO NOT TRUST this choice: ").split("; ")
        raise RunError(
            f"{args.law}: {why}, so {args.out} was not written; {mend}, or write it anyway with --accept-untrusted"
        )
    mixture = mixture_to_json(law, sha256, Path(args.law).name, goal, choice)
    _write_json(access, mixture, args.out)
    print(choice_report(law, goal, choice))
    print(f"mixture: {args.out}")
    if draw:
        draw(mixture)
        print(f"plot: {args.plot}")
    return 0


def _write_json(access: Access, values: dict[str, Any], path: str) -> None:
    kind = f'"format": "{values["format"].partition("/")[0]}/'.encode()
    access.write(path, json_content(values), lambda content: kind in content)


def _limits(args: argparse.Namespace) -> Limits:
    return Limits(
        pools=parse_amounts("--pool", args.pool),
        num_samples=parse_optional("--samples", args.samples),
        min_shares=parse_amounts("--min-share", args.min_share),
        max_shares=parse_amounts("--max-share", args.max_share),
    )


def _domains(args: argparse.Namespace, table: RunsTable | None) -> tuple[tuple[str, ...], Groups]:
    """Return the domains to plan, and the groups of domains that keep their ratio.

    Raises: ConfigError when no domains are named, when the runs have others, or when one is named twice.
    """
    named = tuple(name.strip() for name in (args.domains or "").split(",") if name.strip())
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise ConfigError(f"--domains: {', '.join(twice)} is named more than once")
    if table is not None:
        of_runs = expand_domains(table.domains, table.groups)
        if args.keep:
            raise ConfigError("--keep: the table of --runs says which domains keep their ratio; leave --keep out")
        if named and set(named) != set(of_runs):
            raise ConfigError(f"--domains {args.domains}: the runs have {', '.join(of_runs)}; leave --domains out")
        return table.domains, table.groups
    kept = read_ratio(args.keep) if args.keep else {}
    groups = {name_group(tuple(kept)): kept} if len(kept) > 1 else {}
    if both := sorted(set(kept) & set(named)):
        raise ConfigError(f"--free: {', '.join(both)} is part of {args.keep} already; name new domains only")
    named = (*(groups or kept), *named)
    if not MIN_DOMAINS <= len(named) <= MAX_DOMAINS:
        raise ConfigError(
            f"--domains: name {MIN_DOMAINS} to {MAX_DOMAINS}, e.g. --domains plant,general (or give --runs); "
            f"{len(named)} are named"
        )
    if args.objective:
        raise ConfigError("--objective needs --runs: only runs show where the optimum lies")
    return named, groups


def _goal(args: argparse.Namespace, domains: tuple[str, ...]) -> Goal:
    """Return the options of `choose` as a goal.

    Raises: ConfigError for what cannot be read.
    """
    scale = None if args.repetition_scale == "none" else parse_number("--repetition-scale", args.repetition_scale)
    if scale is not None and scale <= 0:
        raise ConfigError(f"--repetition-scale is {scale:g}; it must be above 0, or none")
    if args.bootstrap < 20:
        raise ConfigError(f"--bootstrap is {args.bootstrap}; an interval needs at least 20 laws")
    near_pools = parse_optional("--near-pools", args.near_pools)
    if near_pools is not None and near_pools < 0:
        raise ConfigError(f"--near-pools is {near_pools:g}; it must be 0 or more nats, e.g. 0.01")
    limits = _limits(args)
    max_epochs = _max_epochs(args.max_epochs, domains, limits.pools)
    return Goal(
        weights=parse_objective(args.objective),
        constraints=parse_constraints(args.constraint),
        limits=replace(limits, max_epochs=max_epochs, repetition_scale_epochs=scale),
        near_pools_nats=near_pools,
        num_sampled_laws=args.bootstrap,
    )


def _max_epochs(parts: list[str] | None, domains: tuple[str, ...], pools: dict[str, float]) -> dict[str, float]:
    """`--max-epochs 4` is for every domain with a pool; `plant=4` for one."""
    if parts and len(parts) == 1 and "=" not in parts[0]:
        value = parse_number("--max-epochs", parts[0])
        if not pools:
            raise ConfigError(
                f"--max-epochs {parts[0]} is for domains with a pool, but there is no pool; add --pool DOMAIN=N"
            )
        return {domain: value for domain in domains if domain in pools}
    return parse_amounts("--max-epochs", parts)


def parse_optional(option: str, text: str | None) -> float | None:
    """Return a number, or None when the option is not given.

    Raises: ConfigError when it is no finite number.
    """
    return None if text is None else parse_number(option, text)


def parse_objective(parts: Iterable[str] | None) -> dict[str, float]:
    """Losses and their weights: "plant=1,general=0.5", or "plant" for weight 1.

    Raises: ConfigError when nothing is given or a part cannot be read.
    """
    weights = parse_amounts("--objective", [item if "=" in item else f"{item}=1" for item in split_items(parts)])
    if not weights:
        raise ConfigError('--objective: name at least one loss, e.g. --objective "plant=1,general=1"')
    return weights


def parse_constraints(parts: Iterable[str] | None) -> tuple[Constraint, ...]:
    """Upper limits on losses: "general<=1%" (above its best) or "general<=3.2" (absolute).

    Raises: ConfigError for a part of another shape.
    """
    constraints = []
    for item in split_items(parts):
        name, sign, limit = (part.strip() for part in item.partition("<="))
        if not sign or not name or not limit:
            raise ConfigError(f"--constraint: '{item}' is not LOSS<=NUMBER or LOSS<=NUMBER%")
        relative = limit.endswith("%")
        value = parse_number("--constraint", limit.rstrip("%"))
        if value < 0:
            raise ConfigError(f"--constraint: '{item}': the limit must not be negative")
        constraints.append(Constraint(name, value / 100.0 if relative else value, relative))
    return tuple(constraints)
