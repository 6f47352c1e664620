"""`plantmix plan`: design proxy runs, fit a mixing law, predict losses, choose a ratio.

Reads tables of runs and law files, writes law, prediction, design and mixture files, prints short tables.
Faults of the user leave as ConfigError; the command line prints them and exits with 2.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifests.errors import ConfigError, RunError

if TYPE_CHECKING:
    from pipeline.planning.choose import Wish

_EXAMPLES = """examples:
  plantmix plan design --domains plant,general --budget 8 --out design.csv
  plantmix plan fit RUNS.csv --out law.json --where "model_size = '410M' AND step = 60000"
  plantmix plan predict law.json MIXTURES.csv --out predicted.csv
  plantmix plan choose law.json --objective plant --constraint "general<=1%" --pool plant=10M \\
      --samples 50M --max-epochs plant=4 --out mixture.json --plot mixture.png
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `plan` with its sub-commands to an argparse subparsers object; handlers are set as `func`."""
    plan: argparse.ArgumentParser = subparsers.add_parser(
        "plan",
        help="plan a mixture: design proxy runs, fit a mixing law, choose a ratio",
        description="From a few cheap proxy runs to a ratio and how sure it is.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = plan.add_subparsers(dest="plan_command", required=True, metavar="COMMAND")
    _add_design(commands)
    _add_fit(commands)
    _add_predict(commands)
    _add_choose(commands)
    return plan


def _command(
    commands: Any, name: str, text: str, examples: tuple[str, ...], func: Callable[..., int]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text.replace("%", "%%"),
        description=text[0].upper() + text[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  plantmix plan {name} {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(func=func)
    return parser


def _add_design(commands: Any) -> None:
    parser = _command(
        commands,
        "design",
        "propose the next proxy runs",
        (
            "--domains plant,general --budget 8 --out design.csv",
            "--domains plant,general --budget 8 --pool plant=10M --samples 50M --proxy-samples 1M --out design.csv",
            "--runs RUNS.csv --budget 4 --objective plant=1,general=1 --out more.csv",
        ),
        run_design,
    )
    parser.add_argument("--domains", help="names, comma-separated; not needed with --runs")
    parser.add_argument("--budget", type=int, required=True, metavar="N", help="how many runs to propose")
    parser.add_argument("--runs", metavar="RUNS", help="runs done already: new ones keep away from them")
    parser.add_argument("--where", metavar="SQL", help="keep only these rows of --runs, a condition on its columns")
    parser.add_argument(
        "--objective",
        action="append",
        metavar="LOSS=WEIGHT",
        help="with --runs: put half of the budget where the optimum of these losses is most uncertain",
    )
    parser.add_argument("--replicates", type=int, metavar="N", help="runs of the budget that repeat a mixture")
    _add_share_bounds(parser)
    parser.add_argument("--pool", action="append", metavar="DOMAIN=N", help="distinct samples of the full data")
    parser.add_argument("--samples", metavar="N", help="samples seen by the full training")
    parser.add_argument("--proxy-samples", metavar="N", help="samples seen by one proxy run")
    parser.add_argument("--out", required=True, metavar="DESIGN.csv", help="the list of runs for `dalip proxies`")


def _add_fit(commands: Any) -> None:
    parser = _command(
        commands,
        "fit",
        "fit a mixing law to proxy runs",
        (
            "RUNS.csv --out LAW.json --where \"model_size = '410M' AND step = 60000\"",
            "RUNS.csv --out LAW.json --target-size 410M --target-step 60000",
            "build/ --out LAW.json   (the runs of `dalip proxies` recorded in a work folder)",
        ),
        run_fit,
    )
    parser.add_argument("runs", metavar="RUNS", help="csv, parquet, or a work folder with the runs of `dalip proxies`")
    parser.add_argument("--out", required=True, metavar="LAW.json", help="where the law goes")
    parser.add_argument("--where", metavar="SQL", help="keep only these rows, a condition on the table's columns")
    parser.add_argument("--target-size", metavar="SIZE", help="carry the runs of other model sizes over to this one")
    parser.add_argument("--target-step", metavar="STEP", help="carry runs that stopped earlier over to this step")


def _add_predict(commands: Any) -> None:
    parser = _command(
        commands,
        "predict",
        "predict the losses of mixtures, with 90 % intervals",
        ("LAW.json MIXTURES.csv --out PRED.csv",),
        run_predict,
    )
    parser.add_argument("law", metavar="LAW.json", help="from `plan fit`")
    parser.add_argument("mixtures", metavar="MIXTURES", help="csv or parquet with a mix_<domain> column a domain")
    parser.add_argument("--out", required=True, metavar="PRED.csv", help="the input with loss columns added")


def _add_choose(commands: Any) -> None:
    parser = _command(
        commands,
        "choose",
        "choose a ratio under real limits",
        (
            "LAW.json --objective plant=2,general=1 --out mixture.json --plot mixture.html",
            'LAW.json --objective plant --constraint "general<=1%" --out mixture.json',
            "LAW.json --objective plant,general --pool plant=10M --samples 50M --max-epochs plant=4 --out mixture.json",
        ),
        run_choose,
    )
    parser.add_argument("law", metavar="LAW.json", help="from `plan fit`")
    parser.add_argument(
        "--objective",
        required=True,
        action="append",
        metavar="LOSS=WEIGHT",
        help='losses to minimise with weights: "plant=1,general=1"',
    )
    parser.add_argument(
        "--constraint",
        action="append",
        metavar="LOSS<=LIMIT",
        help='"general<=1%%" (above its best) or "general<=3.2"; repeatable',
    )
    parser.add_argument("--pool", action="append", metavar="DOMAIN=N", help="distinct samples a domain, e.g. plant=10M")
    parser.add_argument("--samples", metavar="N", help="samples seen over the whole training")
    parser.add_argument("--max-epochs", action="append", metavar="DOMAIN=N", help="most passes over a domain's pool")
    _add_share_bounds(parser)
    parser.add_argument(
        "--repetition-scale",
        default="15.4",
        metavar="R",
        help="R* of the value of repeated samples (15.4 was measured on text); none: repetition costs nothing, "
        "for proxy runs that were pool-matched",
    )
    parser.add_argument("--near-optimal", default="0.005", metavar="NATS", help="what counts as as good (0.005)")
    parser.add_argument("--bootstrap", type=int, default=120, metavar="B", help="laws drawn for the interval (120)")
    parser.add_argument("--out", required=True, metavar="mixture.json", help="where the ratio goes, for `mix`")
    parser.add_argument("--plot", metavar="FILE", help="draw the choice: .png, or .html for one self-contained page")
    parser.add_argument(
        "--accept-untrusted", action="store_true", help="write the mixture of a law that fails its own held-out test"
    )


def _add_share_bounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--min-share", action="append", metavar="DOMAIN=R", help="least share, e.g. plant=0.1")
    parser.add_argument("--max-share", action="append", metavar="DOMAIN=R", help="largest share, e.g. web=0.3")


def run_design(args: argparse.Namespace) -> int:
    """`plantmix plan design`."""
    from pipeline.planning.design import Proxies, design_notes, design_table, propose_runs
    from pipeline.planning.limits import Limits, share_box
    from pipeline.planning.reading import parse_amounts, parse_number, parse_objective
    from pipeline.planning.runs import MAX_DOMAINS, MIN_DOMAINS, read_runs

    table = read_runs(args.runs, args.where) if args.runs else None
    named = tuple(name.strip() for name in (args.domains or "").split(",") if name.strip())
    if table is None and not MIN_DOMAINS <= len(named) <= MAX_DOMAINS:
        raise ConfigError(
            f"--domains: name {MIN_DOMAINS} to {MAX_DOMAINS}, e.g. --domains plant,general (or give --runs); "
            f"{len(named)} are named"
        )
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise ConfigError(f"--domains: {', '.join(twice)} is named more than once")
    if table is not None and named and set(named) != set(table.domains):
        raise ConfigError(f"--domains {args.domains}: the runs have {', '.join(table.domains)}")
    if table is None and args.objective:
        raise ConfigError("--objective needs --runs: without runs nothing is known of the optimum")
    domains = table.domains if table is not None else named
    limits = Limits(
        pools=parse_amounts("--pool", args.pool),
        num_samples=None if args.samples is None else parse_number("--samples", args.samples),
        min_shares=parse_amounts("--min-share", args.min_share),
        max_shares=parse_amounts("--max-share", args.max_share),
    )
    proxy = None if args.proxy_samples is None else parse_number("--proxy-samples", args.proxy_samples)
    if proxy is not None and proxy < 1:
        raise ConfigError(f"--proxy-samples is {args.proxy_samples}; it must be at least 1")
    objective = parse_objective(args.objective) if args.objective else {}
    box = share_box(domains, limits, {})
    proposed = propose_runs(domains, args.budget, box, table, objective, args.replicates)
    sizes = Proxies(limits.pools, limits.num_samples, proxy)
    text, lines = design_table(domains, proposed, sizes, 0 if table is None else table.num_runs)
    lines += design_notes(domains, proposed, args.budget, table)
    publish_text(args.out, text)
    print("\n".join(lines))
    print(f"design: {args.out}")
    return 0


def publish_text(path: str, text: str) -> None:
    """Write a small file whole, its folder too where there is none.

    Raises: ConfigError when the place cannot be written.
    """
    from manifests import storage

    storage.make_parent(str(path))
    try:
        storage.publish_bytes(str(path), text.encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None


def run_fit(args: argparse.Namespace) -> int:
    """`plantmix plan fit`."""
    from pipeline.planning.law_files import write_law
    from pipeline.planning.laws import fit_law
    from pipeline.planning.nesting import Nested, nest_runs, require_one_setting
    from pipeline.planning.reading import parse_number
    from pipeline.planning.reports import fit_report
    from pipeline.planning.runs import read_runs

    table = read_runs(args.runs, args.where)
    step = None if args.target_step is None else parse_number("--target-step", args.target_step)
    if args.target_size is None and step is None:
        require_one_setting(table)
        nested = Nested(table, (), None)
    else:
        nested = nest_runs(table, args.target_size, step)
    law = fit_law(nested.table, nested.notes, nested.plan)
    write_law(law, args.out)
    print(fit_report(law))
    print(f"law: {args.out}")
    return 0


def run_predict(args: argparse.Namespace) -> int:
    """`plantmix plan predict`."""
    from pipeline.planning.law_files import read_law
    from pipeline.planning.runs import read_mixtures

    law, _ = read_law(args.law)
    names, columns, shares = read_mixtures(args.mixtures, law.domains)
    predicted = law.predict(shares)
    outside = law.outside_tried(shares)
    added = {f"loss_{loss}{end}": values for loss, three in predicted.items() for end, values in _ends(three)}
    kept = [name for name in names if name not in added]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*kept, *added])
    for row in range(len(shares)):
        given = ["" if columns[name][row] is None else columns[name][row] for name in kept]
        writer.writerow([*given, *(repr(float(values[row])) for values in added.values())])
    publish_text(args.out, text.getvalue())
    print(f"{len(shares)} mixture(s) predicted: {args.out}")
    if outside.any():
        print(f"warning: {int(outside.sum())} of them lie outside the tried ratios: the law extrapolates there")
    return 0


def _ends(three: tuple[Any, Any, Any]) -> list[tuple[str, Any]]:
    return list(zip(("", "_lo", "_hi"), three, strict=True))


def run_choose(args: argparse.Namespace) -> int:
    """`plantmix plan choose`."""
    from pipeline.planning.choose import choose_mixture
    from pipeline.planning.law_files import read_law
    from pipeline.planning.mixture_files import write_mixture
    from pipeline.planning.reports import choice_report

    law, sha256 = read_law(args.law)
    wish = read_wish(args, law.domains)
    if args.plot and Path(args.plot).suffix.lower() not in (".png", ".html"):
        raise ConfigError(f"--plot {args.plot}: the name must end in .png or .html")
    chosen = choose_mixture(law, wish)
    doubts = [line for line in law.warnings if line.startswith("DO NOT TRUST")]
    if doubts and not args.accept_untrusted:
        print(choice_report(law, wish, chosen))
        raise RunError(
            f"{args.law}: the law is not to be trusted ({len(doubts)} of its losses predict worse than their mean), so "
            f"{args.out} was not written; add runs and fit again, or take it all the same with --accept-untrusted"
        )
    write_mixture(law, sha256, Path(args.law).name, wish, chosen, args.out)
    print(choice_report(law, wish, chosen))
    print(f"mixture: {args.out}")
    if args.plot:
        from pipeline.planning.plots import write_plot

        write_plot(law, wish, chosen, args.plot)
        print(f"plot: {args.plot}")
    return 0


def read_wish(args: argparse.Namespace, domains: tuple[str, ...]) -> Wish:
    """The options of `choose` as a Wish.

    Raises: ConfigError for what cannot be read.
    """
    from pipeline.planning.choose import Wish
    from pipeline.planning.limits import Limits
    from pipeline.planning.reading import parse_amounts, parse_constraints, parse_number, parse_objective

    scale = None if args.repetition_scale == "none" else parse_number("--repetition-scale", args.repetition_scale)
    if scale is not None and scale <= 0:
        raise ConfigError(f"--repetition-scale is {scale:g}; it must be above 0, or none")
    if args.bootstrap < 20:
        raise ConfigError(f"--bootstrap is {args.bootstrap}; an interval needs at least 20 laws")
    near = parse_number("--near-optimal", args.near_optimal)
    if near <= 0:
        raise ConfigError(f"--near-optimal is {near:g}; it must be above 0")
    limits = Limits(
        pools=parse_amounts("--pool", args.pool),
        num_samples=None if args.samples is None else parse_number("--samples", args.samples),
        max_epochs=_max_epochs(args.max_epochs, domains, parse_amounts("--pool", args.pool)),
        min_shares=parse_amounts("--min-share", args.min_share),
        max_shares=parse_amounts("--max-share", args.max_share),
        repetition_scale_epochs=scale,
    )
    return Wish(
        weights=parse_objective(args.objective),
        constraints=parse_constraints(args.constraint),
        limits=limits,
        near_optimal_nats=near,
        num_bootstrap=args.bootstrap,
    )


def _max_epochs(parts: list[str] | None, domains: tuple[str, ...], pools: dict[str, float]) -> dict[str, float]:
    """`--max-epochs 4` is for every domain with a pool; `plant=4` for one."""
    from pipeline.planning.reading import parse_amounts, parse_number

    if parts and len(parts) == 1 and "=" not in parts[0]:
        value = parse_number("--max-epochs", parts[0])
        if not pools:
            raise ConfigError(
                f"--max-epochs {parts[0]} is for every domain with a pool, and none is given; add --pool DOMAIN=N"
            )
        return {domain: value for domain in domains if domain in pools}
    return parse_amounts("--max-epochs", parts)
