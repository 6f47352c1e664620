"""`plantmix plan`: design proxy runs, fit a mixing law, choose a ratio.

Reads tables of runs and law files; writes law, design and mixture files; prints short tables.
Faults of the user leave as ConfigError; the command line prints them and exits with 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from manifests.contract.release import require_output
from manifests.errors import ConfigError, RunError
from manifests.services.drawing.panels import draw_png, require_picture
from manifests.stores.storage import write_file
from pipeline.commands import Commands, add_command, parse_amounts, parse_number, split_items
from pipeline.planning.choose import choose_mixture
from pipeline.planning.design import design_notes, design_table, propose_runs
from pipeline.planning.files import law_to_json, mixture_to_json, read_law, read_ratio, write_json
from pipeline.planning.goals import Constraint, Goal
from pipeline.planning.laws import fit_law
from pipeline.planning.limits import Limits, share_box
from pipeline.planning.plots import cautions_of, panels_of
from pipeline.planning.reports import choice_report, fit_report
from pipeline.planning.runs.checks import require_one_setting
from pipeline.planning.runs.groups import Groups, expand_domains, merge_limits, name_group
from pipeline.planning.runs.run_table import MAX_DOMAINS, MIN_DOMAINS, RunsTable, read_runs


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `plan` with its sub-commands to the command line."""
    about = "plan a mixture: design proxy runs, fit a mixing law, choose a ratio"
    plan = add_command(
        commands,
        "plan",
        about,
        "plantmix plan design --domains plant,general --budget 8 --out runs.csv",
        reads="tables of proxy runs, or the runs that `dalip proxies` recorded in a work folder",
        writes="the files named with --out and --plot",
    )
    steps = plan.add_subparsers(dest="plan_command", required=True, metavar="COMMAND")
    _add_design(steps)
    _add_fit(steps)
    _add_choose(steps)


def _add_design(steps: Commands[argparse.ArgumentParser]) -> None:
    example = "plantmix plan design --domains plant,general --budget 8 --out design.csv"
    parser = add_command(
        steps,
        "design",
        "propose the next proxy runs",
        example,
        reads="RUNS, where given",
        writes="a table of runs to do",
    )
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
    parser.set_defaults(func=_design)


def _add_fit(steps: Commands[argparse.ArgumentParser]) -> None:
    example = "plantmix plan fit RUNS.csv --out LAW.json --where \"model_size = '410M' AND step = 60000\""
    parser = add_command(steps, "fit", "fit a mixing law to proxy runs", example, reads="RUNS", writes="LAW.json")
    parser.add_argument("runs", metavar="RUNS", help="csv, parquet, or a work folder with the runs of `dalip proxies`")
    parser.add_argument("--out", required=True, metavar="LAW.json", help="where the law goes")
    _add_row_options(parser)
    parser.set_defaults(func=_fit)


def _add_choose(steps: Commands[argparse.ArgumentParser]) -> None:
    example = 'plantmix plan choose LAW.json --objective plant --constraint "general<=1%" --out mixture.json'
    parser = add_command(
        steps,
        "choose",
        "choose a ratio under real limits",
        example,
        reads="LAW.json",
        writes="mixture.json and the plot",
    )
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
    parser.set_defaults(func=_choose)


def _add_row_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--where", metavar="SQL", help="keep only these runs, a condition on the table's columns")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    text = "distinct samples of a domain in the full data, e.g. plant=10M"
    parser.add_argument("--pool", action="append", metavar="DOMAIN=N", help=text)
    parser.add_argument("--samples", metavar="N", help="samples seen over the whole full training")
    parser.add_argument("--min-share", action="append", metavar="DOMAIN=R", help="least share, e.g. plant=0.1")
    parser.add_argument("--max-share", action="append", metavar="DOMAIN=R", help="largest share, e.g. web=0.3")


def _limits(args: argparse.Namespace) -> Limits:
    return Limits(
        pools=parse_amounts("--pool", args.pool),
        num_samples=parse_optional("--samples", args.samples),
        min_shares=parse_amounts("--min-share", args.min_share),
        max_shares=parse_amounts("--max-share", args.max_share),
    )


def _design(args: argparse.Namespace) -> int:
    table = read_runs(args.runs, args.where) if args.runs else None
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
    require_output(args.out, lambda content: content.startswith(b"run,reason,") and b"loss_" not in content)
    write_file(args.out, text.encode())
    print("\n".join(lines))
    print(f"design: {args.out}")
    return 0


def _domains(args: argparse.Namespace, table: RunsTable | None) -> tuple[tuple[str, ...], Groups]:
    """The domains to plan, and the groups of domains that keep their ratio.

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


def _fit(args: argparse.Namespace) -> int:
    table = read_runs(args.runs, args.where)
    require_one_setting(table)
    law = fit_law(table)
    write_json(law_to_json(law), args.out)
    print(fit_report(law))
    print(f"law: {args.out}")
    return 0


def _choose(args: argparse.Namespace) -> int:
    law, sha256 = read_law(args.law)
    goal = _goal(args, expand_domains(law.domains, law.runs.groups))
    if args.plot:
        require_picture("--plot", args.plot)
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
    write_json(mixture, args.out)
    print(choice_report(law, goal, choice))
    print(f"mixture: {args.out}")
    if args.plot:
        title = "Chosen: " + ", ".join(f"{share:.1%} {domain}" for domain, share in mixture["ratio"].items())
        write_file(args.plot, draw_png(panels_of(mixture), title, cautions_of(mixture)))
        print(f"plot: {args.plot}")
    return 0


def _goal(args: argparse.Namespace, domains: tuple[str, ...]) -> Goal:
    """The options of `choose` as a goal.

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
    """A number, or None when the option is not given.

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
