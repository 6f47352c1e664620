"""`plantmix verify`: find what is damaged in a work folder or a release. `plantmix repair`: restore just that."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from manifests.contract.catalog import STATUS_FILE, Catalog
from manifests.contract.catalog_file import CATALOG_FILE, is_work_folder, rebuild, require_work_folder
from manifests.errors import ConfigError
from manifests.stores.folder import local_place, place_of, store_of
from pipeline.answers.tables import print_lines
from pipeline.commands import CONFIG_HELP, WORKDIR_HELP, Commands, add_command, add_json_option, print_json
from pipeline.commands.build import build_config
from pipeline.config import BuildConfig, read_config
from pipeline.engine.kept_config import Comparison, compare_with_last, last_config
from pipeline.flow import FLOW
from pipeline.releases.checks import check_release
from pipeline.releases.folder_checks import Finding, FolderCheck, FolderChecked
from pipeline.releases.mending import Plan, forget_unused, mend, plan_mending, still_lost
from pipeline.releases.opening import open_release
from pipeline.releases.repacking import repack, write_pointers

MAX_SHOWN = 20
EXIT_CODES = "exit code: 0 all is whole, 1 a work folder has damage, 2 a release is not whole or there is none"


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `verify` to the command line."""
    parser = add_command(
        commands,
        "verify",
        "check that every file of a work folder, or of a release, is as it was recorded",
        f"plantmix verify data/demo --deep\n{EXIT_CODES}",
        reads="catalogue, tables, and releases without their shards; with --deep also pool and shards, every byte",
        writes="nothing",
    )
    parser.add_argument("dir", metavar="DIR", help="work folder of a build, a release folder, or WORKDIR/releases/NAME")
    parser.add_argument(
        "--deep",
        action="store_true",
        help="also hash pool and shards; decode every image of the release (of a work folder: the newest), and compare "
        "pHashes and texts with record and catalogue",
    )
    add_json_option(parser)
    parser.set_defaults(func=_verify)


def add_repair_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `repair` to the command line."""
    parser = add_command(
        commands,
        "repair",
        "restore what is damaged or missing in a work folder, and nothing else",
        "plantmix repair data/demo\nexit code: 0 all is whole now, 1 something is not, or --yes is needed",
        reads="every file of the work folder; the web only for pictures that are nowhere else, and only with --yes",
        writes="the damaged files, with the bytes they had; what depends on them, if the web gives other pictures",
    )
    parser.add_argument("dir", metavar="DIR", help=WORKDIR_HELP)
    parser.add_argument("config", metavar="CONFIG", nargs="?", help=f"{CONFIG_HELP} (default: that of the last build)")
    parser.add_argument("--yes", action="store_true", help="download again what no file here holds")
    parser.set_defaults(func=_repair)


def _verify(args: argparse.Namespace) -> int:
    if is_work_folder(args.dir):
        checked = FolderCheck(args.dir, args.deep).run()
        if args.json:
            print_json({**asdict(checked), "deep": args.deep})
        else:
            print_lines(describe(checked, store_of(args.dir) or args.dir, args.deep))
        if checked.findings:
            return 1
        if args.json or not checked.releases:
            return 0
    elif args.json:
        release = open_release(args.dir)
        checked_release = check_release(release, args.deep)
        print_json({"release": release.name, "path": release.path, "deep": args.deep, **asdict(checked_release)})
        return 0
    return _verify_release(place_of(args.dir), args.deep)


def _verify_release(path: str, deep: bool) -> int:
    release = open_release(path)
    checked = check_release(release, deep)
    if not deep:
        num_others = checked.num_files - checked.num_shards
        print(f"{release.name}: {checked.num_files:,} files have the recorded sizes; counts add up")
        print(
            f"sha256 as recorded: {num_others:,} files, all but the {checked.num_shards:,} shards (--deep reads them)"
        )
        return 0
    print(f"{release.name}: {checked.num_files:,} files, sizes and sha256 as recorded; counts add up")
    print(f"{checked.num_images:,} images decode; pHash, sha256 and text of each equal the record")
    if checked.why_not_compared is None:
        print("pHash, image, licence and text of each equal the catalogue")
    else:
        print(f"not compared with a catalogue: {checked.why_not_compared}")
    return 0


def describe(checked: FolderChecked, workdir: str, deep: bool) -> list[str]:
    """Describe the findings in a work folder, in lines that a person reads."""
    findings = checked.findings
    read = f"({checked.num_bytes_read / 1e6:,.1f} MB read"
    read += ")" if deep else "; of pool and shards only the sizes: --deep reads them)"
    if not findings:
        return [f"{workdir}: {checked.num_files:,} files are as recorded {read}"]
    lines = [f"{workdir}: {len(findings):,} of {checked.num_files:,} files are not as recorded {read}", ""]
    for finding in findings[:MAX_SHOWN]:
        lines += [f"{finding.file}: {finding.fault}", f"    costs: {finding.cost}"]
    if len(findings) > MAX_SHOWN:
        lines.append(f"and {len(findings) - MAX_SHOWN:,} more (--json names them all)")
    mends = dict.fromkeys(finding.mend for finding in findings)
    return [*lines, "", *(f"to mend it: {mend}" for mend in mends)]


# ---- repair


def _repair(args: argparse.Namespace) -> int:
    require_work_folder(args.dir)
    config = read_config(args.config) if args.config else None
    if config is not None and Path(local_place(config.work_dir)).resolve() != Path(args.dir).resolve():
        raise ConfigError(f"{args.config}: its work_dir is {config.work_dir}, not {args.dir}")
    checked = FolderCheck(args.dir, deep=True).run()
    print_lines(describe(checked, args.dir, deep=True))
    if not checked.findings:
        print("nothing to repair")
        return 0
    print()
    findings = checked.findings
    if any(finding.kind == "catalogue" for finding in findings):
        snapshot = rebuild(args.dir)
        num_parts = len(snapshot.tables.get("parts", ()))
        print(f"{CATALOG_FILE}: rebuilt from snapshot {snapshot.number} ({num_parts:,} parts)")
        findings = FolderCheck(args.dir, deep=True).run().findings
    with Catalog.open(args.dir) as catalog:
        plan = plan_mending(catalog, findings)
        config = config or _config_of(catalog, args.dir)
        compared = _leave_out_what_differs(catalog, plan, config)
        if plan.num_to_ask and not args.yes:
            print_lines(_ask_first(plan.num_to_ask, plan.missing, args.dir, args.config))
            return 1
        print_lines(_mend(catalog, plan, findings, config))
    lost: list[str] = []
    if compared.same and (plan.forgotten or plan.num_to_ask):
        build_config(config, last=compared.same[-1], as_sealed=compared.away)
        findings = FolderCheck(args.dir, deep=True).run().findings
        with Catalog.open(args.dir) as catalog:
            print_lines(repack(catalog, findings))
            lost = still_lost(catalog, plan.missing)
    print_lines(_describe_lost(lost))
    left = FolderCheck(args.dir, deep=True).run()
    with Catalog.open(args.dir) as catalog:
        forgotten = list(forget_unused(catalog, left.findings))
    if forgotten:
        print_lines(forgotten)
        left = FolderCheck(args.dir, deep=True).run()
    print_lines(describe(left, args.dir, deep=True))
    if compared.changes:
        print_lines(_describe_changes(compared, args.config))
    return 1 if left.findings or compared.changes else 0


def _leave_out_what_differs(catalog: Catalog, plan: Plan, config: BuildConfig) -> Comparison:
    """Leave in the plan only what a build can mend without making another release than the last one.

    If that makes the plan shorter, `changes` says what of the configuration or its inputs has changed or is away.
    """
    compared = compare_with_last(catalog, FLOW, config)
    if any(part.stage in compared.away for part in plan.forgotten):  # the stages behind it have to wait, too
        compared.same = []
    changes = [*compared.changes, *(f"{stage}: {why}" for stage, why in compared.away.items())]
    num_before = len(plan.forgotten) + len(plan.downloads)
    plan.forgotten = [part for part in plan.forgotten if part.stage in compared.same or not changes]
    plan.downloads = [item for item in plan.downloads if "fetch" in compared.same or not (changes and item.num_to_ask)]
    compared.changes = changes if len(plan.forgotten) + len(plan.downloads) < num_before else []
    return compared


def _describe_changes(compared: Comparison, config: str | None) -> Iterable[str]:
    why = "its inputs cannot be read" if compared.away else "a build would make another release than the last one"
    yield f"not made again, because {why}:"
    yield from (f"    {change}" for change in compared.changes[:MAX_SHOWN])
    if compared.away:
        yield "put them back, then run the same command again"
    else:
        yield f"to make that release: plantmix build {config or 'CONFIG'}"


def _config_of(catalog: Catalog, workdir: str) -> BuildConfig:
    try:
        return last_config(catalog)
    except ConfigError:
        raise ConfigError(
            f"{workdir}: holds no build configuration that this version can read; nothing is changed yet. "
            f"Give that of the last build: plantmix repair {workdir} CONFIG"
        ) from None


def _ask_first(num: int, missing: Sequence[Mapping[str, Any]], workdir: str, config: str | None) -> Iterable[str]:
    hosts = sorted({row["host"] for row in missing if row["host"]})
    named = f" from {', '.join(hosts[:5])}{' and others' if len(hosts) > 5 else ''}" if hosts else ""
    yield (
        f"{num:,} rows must be downloaded again{named}: no intact file here holds their pictures. The web "
        "may have lost them, or show other pictures now; then the next release differs. Nothing is changed yet."
    )
    yield f"to go on: plantmix repair {workdir}{f' {config}' if config else ''} --yes"


def _mend(catalog: Catalog, plan: Plan, findings: Sequence[Finding], config: BuildConfig) -> Iterable[str]:
    """Mend what can be mended without a build. Shards need the pool, so the pool comes first."""
    yield from mend(catalog, plan)
    later = (": not yet: ", ": lost: ") if plan.forgotten or plan.num_to_ask else ()  # tried again after the build
    yield from (line for line in repack(catalog, findings) if not any(words in line for words in later))
    yield from write_pointers(catalog, findings)
    if any(finding.kind == "status" for finding in findings):
        catalog.publish_status({"name": config.name, "running": None, "pid": None})
        yield f"{STATUS_FILE}: written again"


def _describe_lost(lost: Sequence[str]) -> Iterable[str]:
    if lost:
        yield f"{len(lost):,} pictures are lost for good; later releases lack them, earlier releases keep their shards:"
        yield from (f"    {line}" for line in lost[:MAX_SHOWN])
        if len(lost) > MAX_SHOWN:
            yield f"    and {len(lost) - MAX_SHOWN:,} more"
