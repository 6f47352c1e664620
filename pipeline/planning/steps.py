"""design, fit and choose as commands: read the options, plan, write the files, print short tables.

`plantmix plan` and `python -m pipeline.planning` are these steps with another `Access`. Faults of the user leave as
ConfigError; the command line prints them and exits with 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError, RunError
from pipeline.planning.choose import choose_mixture
from pipeline.planning.design import design_notes, design_table, propose_runs
from pipeline.planning.files import json_content, law_to_json, mixture_to_json, read_law
from pipeline.planning.laws import fit_law
from pipeline.planning.limits import share_box
from pipeline.planning.options import (
    add_choose_options,
    add_design_options,
    add_fit_options,
    domains_of,
    goal_of,
    limits_of,
    parse_objective,
    parse_optional,
)
from pipeline.planning.reports import choice_report, fit_report
from pipeline.planning.runs.checks import require_one_setting
from pipeline.planning.runs.groups import expand_domains, merge_limits
from pipeline.planning.runs.run_table import RunsTable


@dataclass(frozen=True)
class Access:
    """How the steps reach tables, files and plots; the planner itself has no package for them."""

    read_runs: Callable[[str, str | None], RunsTable]
    """From a path and a filter in SQL."""
    write: Callable[[str, bytes, Callable[[bytes], bool]], None]
    """To a path, which may hold nothing or what the last argument knows as a file of the same kind."""
    plotter: Callable[[str], Callable[[dict[str, Any]], None]]
    """Checks the path of a plot, and gives what draws a mixture there."""


def add_steps(
    steps: Any, add_command: Callable[..., argparse.ArgumentParser], access: Access, program: str = "plantmix plan"
) -> None:
    """Add the three commands; `add_command` makes a parser of name, about, example, `reads` and `writes`."""
    design = add_command(
        steps,
        "design",
        "propose the next proxy runs",
        f"{program} design --domains plant,general --budget 8 --out design.csv",
        reads="RUNS, where given",
        writes="a table of runs to do",
    )
    add_design_options(design)
    design.set_defaults(func=partial(_design, access))
    fit = add_command(
        steps,
        "fit",
        "fit a mixing law to proxy runs",
        f"{program} fit RUNS.csv --out LAW.json --where \"model_size = '410M' AND step = 60000\"",
        reads="RUNS",
        writes="LAW.json",
    )
    add_fit_options(fit)
    fit.set_defaults(func=partial(_fit, access))
    choose = add_command(
        steps,
        "choose",
        "choose a ratio under real limits",
        f'{program} choose LAW.json --objective plant --constraint "general<=1%" --out mixture.json',
        reads="LAW.json",
        writes="mixture.json and the plot",
    )
    add_choose_options(choose)
    choose.set_defaults(func=partial(_choose, access))


def _design(access: Access, args: argparse.Namespace) -> int:
    table = access.read_runs(args.runs, args.where) if args.runs else None
    domains, groups = domains_of(args, table)
    limits = limits_of(args)
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
    goal = goal_of(args, expand_domains(law.domains, law.runs.groups))
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
