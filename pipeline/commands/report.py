"""`plantmix report`: the page of a release, with what only its work folder knows where it lies in one.

The release's own report.html holds what follows from the release alone; the duplicates and leaks of the build it came
from stand in the work folder, and are shown when the release is the one its catalogue now tells of.
"""

from __future__ import annotations

import argparse
import json
import tempfile

from manifests import storage
from manifests.reader import open_reader
from manifests.release import SAMPLES_FILE, Release
from pipeline.commands.parsing import RELEASE_HELP, Commands, add_command
from pipeline.releases.opening import open_release, work_folder_of
from pipeline.sidefiles.contact_sheets import duplicates_section
from pipeline.sidefiles.figures import collect
from pipeline.sidefiles.page import write_page
from pipeline.store.sql import open_scratch


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `report` to the command line."""
    parser = add_command(
        commands,
        "report",
        "one self-contained HTML page: what came in, what was dropped, mixture, samples, licences, duplicates",
        "plantmix report data/demo --out demo.html",
    )
    parser.add_argument("release", metavar="RELEASE", help=RELEASE_HELP)
    parser.add_argument("--out", metavar="FILE", help="where to write it (NAME-VERSION.html in the current folder)")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    release = open_release(args.release)
    out = args.out or f"{release.name}.html"
    page = report_of(release, work_folder_of(release))
    storage.publish_bytes(out, page.encode())
    print(f"report: {out}")
    return 0


def report_of(release: Release, workdir: str | None) -> str:
    """The page as text; it has the duplicates section when `workdir` is the release's work folder and tells of it.

    Raises: RunError while a build holds the catalogue.
    """
    fs, inner = storage.filesystem(storage.join(release.path, "mixture.json"))
    mixture = json.loads(fs.cat_file(inner))
    with tempfile.TemporaryDirectory() as scratch, open_scratch(scratch, 4.0) as sql:
        figures = collect(sql, storage.join(release.path, SAMPLES_FILE), release.path)
    fragments = []
    if workdir is not None and _is_current(release, workdir):
        fragments.append(duplicates_section(workdir))
    return write_page(release.record, mixture, figures, fragments)


def _is_current(release: Release, workdir: str) -> bool:
    """Whether the catalogue's views are those that this release was packed from."""
    with open_reader(workdir) as connection:
        rows = connection.execute(
            "SELECT 1 FROM current_stages WHERE stage = 'pack' AND fingerprint = $1", [release.fingerprint]
        ).fetchall()
    return bool(rows)
