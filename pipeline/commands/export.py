"""`plantmix export`: a release for other tools. `plantmix publish`: on the Hugging Face Hub or in a store."""

from __future__ import annotations

import argparse

from manifests.contract.release import Release
from manifests.errors import ConfigError
from pipeline.answers.tables import aligned, print_lines
from pipeline.commands import RELEASE_HELP, Commands, add_command
from pipeline.planning.amounts import parse_amounts
from pipeline.releases.export import TARGETS, describe, write_img2dataset
from pipeline.releases.opening import open_release
from pipeline.releases.publishing import Plan, plan_publishing, publish
from pipeline.releases.takedown import require_none_taken_down

WRITTEN = "img2dataset"  # the one target that takes files


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `export` to the command line."""
    parser = add_command(
        commands,
        "export",
        "print what to paste so that another tool reads a release, or write the files it expects",
        "plantmix export data/demo --for open_clip\n"
        "         plantmix export data/my/releases/strata --for open_clip --ratio plant=1,general=3\n"
        "         plantmix export data/demo --for img2dataset --out data/demo-img2dataset",
        reads=f"the record of the release; for {WRITTEN} its samples table too",
        writes=f"nothing; for {WRITTEN} the folder --out",
    )
    parser.add_argument("release", metavar="RELEASE", help=RELEASE_HELP)
    parser.add_argument("--for", dest="target", required=True, choices=(*TARGETS, WRITTEN), help="the tool that reads")
    parser.add_argument(
        "--ratio",
        metavar="DOMAIN=SHARE,...",
        help="of a stratified release: the shares to draw (default: those it names as its target)",
    )
    parser.add_argument("--out", metavar="DIR", help=f"a new folder, for {WRITTEN}")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    ratio = parse_amounts("--ratio", [args.ratio]) if args.ratio is not None else None
    if args.target in TARGETS:
        if args.out:
            raise ConfigError(f"--out: {args.target} needs no files; leave it out, or use --for {WRITTEN}")
        print(describe(_open(args.release), args.target, ratio))
        return 0
    if not args.out or ratio is not None:
        raise ConfigError(f"--for {args.target} writes files of the whole split train: give --out DIR, and no --ratio")
    print(write_img2dataset(_open(args.release), args.out))
    return 0


def _open(path: str) -> Release:
    return require_none_taken_down(open_release(path))


# ---- publish


def add_publish_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `publish` to the command line."""
    parser = add_command(
        commands,
        "publish",
        "put a release on the Hugging Face Hub, or into a folder or object store",
        "plantmix publish data/demo --to hf:my-lab/plants --dry-run\n"
        "         plantmix publish data/demo --to s3://bucket/plants\n\n"
        "Run it again after any interruption: it goes on. The token of the Hub comes from HF_TOKEN or `hf auth login`.",
        reads="every byte of the release",
        writes="the release at the target, and croissant.json and CITATION.cff beside it; nothing with --dry-run",
    )
    parser.add_argument("release", metavar="RELEASE", help=RELEASE_HELP)
    parser.add_argument(
        "--to", required=True, metavar="TARGET", help="hf:OWNER/NAME, a folder, or an address that fsspec knows"
    )
    parser.add_argument(
        "--public", action="store_true", help="let everyone read it, where every licence allows that (default: private)"
    )
    parser.add_argument(
        "--author", action="append", default=[], metavar="NAME", help="who made it, for the citation; may be repeated"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be sent, and who could see it")
    parser.set_defaults(func=_publish)


def _publish(args: argparse.Namespace) -> int:
    plan = plan_publishing(_open(args.release), args.to, public=args.public, authors=args.author)
    print_lines(_describe(plan))
    if args.dry_run:
        print("nothing was sent (--dry-run)")
        return 0
    print_lines(publish(plan))
    return 0


def _describe(plan: Plan) -> list[str]:
    if plan.public:
        who = "public: the licence of every image lets everyone pass it on"
    elif not plan.on_hub:
        who = "who can read it: whoever may read that place"
    elif plan.not_public or plan.conflicts:
        who = "private, and --public is not possible: not everyone may pass on all images"
    else:
        who = "private: --public was not given, though every licence would allow it"
    rows = [
        (row.licence, row.source, row.num_images, "by everyone" if row.may_be_public else "not by everyone")
        for row in plan.licences
    ]
    return [
        f"release: {plan.release.name}",
        f"to: {plan.target}",
        f"{plan.num_files:,} files, {plan.num_bytes / 1e6:,.1f} MB; beside the release: {', '.join(plan.more)}",
        who,
        *(f"  {line}" for line in aligned(("licence", "source", ">images", "may be passed on"), rows)),
        *(["copies that state another licence; look at these images before they go out:"] if plan.conflicts else []),
        *(f"  {row}" for row in plan.conflicts),
    ]
