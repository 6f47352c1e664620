"""`plantmix report`: the page of a release, with the counts that only its work folder knows."""

from __future__ import annotations

import argparse

from manifests.contract.release import require_output
from manifests.drawing.theme import theme_css
from manifests.stores import storage
from pipeline.commands import RELEASE_HELP, Commands, add_command
from pipeline.releases.opening import open_release, work_folder_of
from pipeline.releases.report import report_of


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `report` to the command line."""
    parser = add_command(
        commands,
        "report",
        "write one HTML page that shows a release: counts of what was dropped, mixture, pictures, licences",
        "plantmix report data/demo --out demo.html",
        reads="the release, and in its work folder the catalogue",
        writes="one file that needs no other",
    )
    parser.add_argument("release", metavar="RELEASE", help=RELEASE_HELP)
    parser.add_argument(
        "--out", metavar="FILE", help="where to write it (default: NAME-VERSION.html in the work folder)"
    )
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    release = open_release(args.release)
    folder = work_folder_of(release) or release.path.rstrip("/").rpartition("/")[0] or "."
    out = args.out or storage.join(folder, f"{release.name}.html")
    require_output(out, lambda page: b"<!doctype html>" in page[:400] and theme_css().encode() in page)
    storage.publish_bytes(out, report_of(release).encode())
    print(f"report: {out}")
    return 0
