"""`plantmix estimate`: what a configuration would fetch, from whom, how long and how large."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from manifests.errors import ConfigError
from manifests.services.printable import duration
from pipeline.answers.estimates import estimate
from pipeline.answers.preflight import Finding, about_mixture, examine, refuse_errors
from pipeline.answers.tables import aligned, joined_counts
from pipeline.commands import CONFIG_HELP, Commands, add_command, add_json_option, print_json
from pipeline.config import read_config
from pipeline.fetching.hosts import MOST_TIMES
from pipeline.sources.reading import none_usable

SHOWN_HOSTS = 15


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `estimate` to the command line."""
    parser = add_command(
        commands,
        "estimate",
        "say what a build would fetch: pictures, hosts, hours at the polite rate, disk",
        "plantmix estimate configs/pipeline/plantmix-13m.yaml --head 200",
        reads="CONFIG and its sources; asks no host, with --head for the sizes of N pictures",
        writes="nothing",
    )
    parser.add_argument("config", metavar="CONFIG", help=CONFIG_HELP)
    parser.add_argument(
        "--head",
        type=int,
        default=0,
        metavar="N",
        help="ask N of the addresses for their size, politely (default: none)",
    )
    add_json_option(parser, ", with every host")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    if args.head < 0:
        raise ConfigError(f"--head {args.head}: give the number of addresses to ask, 0 for none")
    config = read_config(args.config)
    findings = examine(config)
    if any(finding.is_broken for finding in findings):
        refuse_errors(findings)
    figures = estimate(config, args.head)
    uncounted = {source.name for source in config.sources if source.reader.waits_for()}
    counts = {row["source"]: None if row["source"] in uncounted else row["num_pictures"] for row in figures["sources"]}
    texts = {finding.text for finding in findings}
    joined = {source.name for source in config.sources if source.join} - uncounted  # `examine` looks at the others
    for row in figures["sources"]:
        if row["source"] in joined and not row["num_pictures"]:
            what = none_usable(row["num_rows"], row["reasons"])
            if row["is_part"]:
                what = f"none of its first samples can be used ({', '.join(row['reasons'])}); a build reads on"
                counts[row["source"]] = None
            findings.append(Finding(False, f"sources.{row['source']}: {what}"))
    findings += [Finding(True, join["fault"]) for join in figures["joins"] if join["fault"]]
    findings += [finding for finding in about_mixture(config, counts) if finding.text not in texts]
    if args.json:
        print_json(figures)
    else:
        print("\n".join(describe(figures)))
    for finding in findings:
        print(f"{'a build would stop' if finding.is_error else 'warning'}: {finding}", file=sys.stderr)
    return 2 if any(finding.is_error for finding in findings) else 0


def describe(figures: dict[str, Any]) -> list[str]:
    """Return an estimate as lines that a person reads."""
    rows = [
        (row["source"], row["domain"], row["num_rows"], row["num_pictures"], joined_counts(row["reasons"].items()))
        for row in figures["sources"]
    ]
    lines = [*aligned(("source", "domain", ">rows", ">pictures", "left out"), rows), "", *_host_lines(figures["web"])]
    if local := figures["local"]["num_pictures"]:
        size = _in_bytes(figures["local"]["num_bytes"])
        tars = figures["tars"]
        store, asked = (" in a store", f" in {num:,} requests") if (num := tars["num_requests"]) else ("", "")
        lines.append(
            f"{local:,} pictures of {size} lie in {tars['num_tars']:,} files of {_in_bytes(tars['num_bytes'])}{store} "
            f"(reckoned from their first samples), read once{asked}"
            if tars["num_tars"]
            else f"{local:,} pictures of {size} are on this machine; no host is asked for them"
        )
    lines += [join["words"] for join in figures["joins"]]
    lines += ["", *_licence_lines(figures["sources"])]
    return [*lines, "", *_size_lines(figures), *_time_lines(figures), *_disk_lines(figures["disk"])]


def _in_bytes(num: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num < 1000:
            return f"{num:.3g} {unit}" if unit != "B" else f"{num:.0f} B"
        num /= 1000
    return f"{num:,.3g} TB" if num < 1000 else f"{num:,.0f} TB"


def _licence_lines(sources: list[dict[str, Any]]) -> list[str]:
    """Return the licences of each source, those apart that the policy drops, and the texts that cannot be read."""
    lines = []
    for row in sources:
        kept, dropped = (
            joined_counts(
                (held["licence"], held["num_pictures"]) for held in row["licences"] if held["allowed"] is passes
            )
            for passes in (True, False)
        )
        if kept or dropped:
            left = f"; left out by select.licences: {dropped}" if dropped else ""
            lines.append(f"licences  {row['source']}: {kept or 'none that passes'}{left}")
        if unread := row["unread_licences"]:
            line = json.dumps(unread[0]["text"], ensure_ascii=False)
            lines.append(
                "          these texts cannot be read; where you know the licence that one means, write its id"
            )
            lines.append(f"          into the source: `licences: {{{line}: ID}}`")
            lines += [f"          {text['num_pictures']:9,}  {text['text']!r}" for text in unread]
    return lines


def _host_lines(web: dict[str, Any]) -> list[str]:
    held = [f"{web['num_held']:,} addresses are in the work folder already"] if web["num_held"] else []
    if web["num_again"]:
        held.append(
            f"signals of consent count now that nobody listened to when {web['num_again']:,} of them were fetched: "
            "these are downloaded once more"
        )
    if not web["num_urls"]:
        return [*held, "nothing to download"] if held else ["no addresses on the web"]
    rows = [
        (
            host["host"],
            host["num_urls"],
            f"{host['requests_per_second']:g}" if host["requests_per_second"] else "no limit",
            host["connections"],
            duration(host["hours"] * 3600),
        )
        for host in web["hosts"][:SHOWN_HOSTS]
    ]
    rest = web["hosts"][SHOWN_HOSTS:]
    more = [f"and {len(rest):,} more with {sum(host['num_urls'] for host in rest):,} addresses"] if rest else []
    hosts = "host" if web["num_hosts"] == 1 else "hosts"
    return [
        *held,
        f"{web['num_urls']:,} distinct addresses on {web['num_hosts']:,} {hosts}",
        *aligned(("host", ">addresses", ">requests/s", ">at once", ">time"), rows),
        *more,
    ]


def _size_lines(figures: dict[str, Any]) -> list[str]:
    if not figures["web"]["num_urls"]:
        return []
    size, heads = figures["bytes"], figures["heads"]
    lines = []
    if heads is not None:
        others = f" (the others: {joined_counts(heads['outcomes'].items())})" if heads["outcomes"] else ""
        lines.append(
            f"asked     {heads['num_asked']:,} addresses for their size, {heads['num_answered']:,} gave it{others}"
        )
    how = "the mean of those" if figures["assumed"]["picture_bytes"] is None else "assumed; --head N asks a sample"
    lines.append(f"download  {_in_bytes(size['download'])}, at {_in_bytes(size['mean_picture'])} a picture ({how})")
    return lines


def _time_lines(figures: dict[str, Any]) -> list[str]:
    hours, assumed = figures["hours"], figures["assumed"]
    work, total = duration(hours["local_work"] * 3600), duration(hours["total"] * 3600)
    lines = [] if hours["decided_by"] == "decoding" else _deciding_lines(figures)
    begin = "          decoding here" if lines else "time      decoding here decides"
    lines.append(
        f"{begin}: {work} on {assumed['num_cores']} cores "
        f"(assumed {assumed['pictures_per_core_second']} pictures/s a core)"
    )
    lines.append(f"          in total {total}: hosts are asked side by side, pictures decoded meanwhile")
    return lines


def _deciding_lines(figures: dict[str, Any]) -> list[str]:
    """Return the host that decides how long a build takes, and what would change it."""
    slowest, *others = figures["web"]["hosts"]
    rate = f"{slowest['requests_per_second']:g} requests/s" if slowest["requests_per_second"] else "no limit of rate"
    lines = [
        f"time      {slowest['host']} decides: {duration(slowest['hours'] * 3600)} at {rate}, {slowest['connections']} "
        f"at once (at most one request in {figures['assumed']['request_seconds']:g} s a connection, assumed)"
    ]
    if slowest["adaptive"]:
        most = duration(slowest["fewest_hours"] * 3600)
        lines.append(f"          {most} if it bears {MOST_TIMES} times as much: its rate grows until it refuses")
    without = max([figures["hours"]["local_work"], *(host["hours"] for host in others)])
    return [
        *lines,
        "          sooner with a mirror of its pictures, a higher rate agreed with its operator (fetch.network.hosts),",
        f"          or fewer rows of it; without it {duration(without * 3600)}",
    ]


def _disk_lines(disk: dict[str, Any]) -> list[str]:
    pool, release, tables, free = (_in_bytes(disk[f"{name}_bytes"]) for name in ("pool", "release", "tables", "free"))
    where, here = "on that disk", disk["needed_bytes"]
    if disk["in_store"]:
        where, here = "on this machine's disk, where the tables lie too", disk["tables_bytes"]
    return [
        f"disk      {_in_bytes(disk['needed_bytes'])}: pool {pool}, a release of all {release}, tables {tables}",
        f"          free {where}: {free}" + (": not enough" if here > disk["free_bytes"] else ""),
    ]
