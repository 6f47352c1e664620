"""`plantmix report`: the page of a release, with what only its work folder knows where it lies in one.

The release's own report.html holds what follows from the release alone; the duplicates and leaks of the build it came
from stand in the work folder, and are shown when the release is the one its catalogue now tells of.
"""

from __future__ import annotations

import json
import tempfile

from manifests import storage
from manifests.reader import open_reader
from manifests.release import SAMPLES_FILE, Release
from pipeline.report.figures import collect
from pipeline.report.page import write_page
from pipeline.stages.sql import open_scratch


def report_of(release: Release, workdir: str | None) -> str:
    """The page as text; it has the duplicates section when `workdir` is the release's work folder and tells of it.

    Raises: RunError while a build holds the catalogue.
    """
    fs, inner = storage.filesystem(storage.join(release.path, "mixture.json"))
    mixture = json.loads(fs.cat_file(inner))
    with tempfile.TemporaryDirectory() as scratch, open_scratch({"workdir": scratch, "memory_gb": 4.0}) as sql:
        figures = collect(sql, storage.join(release.path, SAMPLES_FILE), release.path)
    fragments = []
    if workdir is not None and _is_current(release, workdir):
        from pipeline.report.duplicates import duplicates_section

        fragments.append(duplicates_section(workdir))
    return write_page(release.record, mixture, figures, fragments)


def _is_current(release: Release, workdir: str) -> bool:
    """Whether the catalogue's views are those that this release was packed from."""
    with open_reader(workdir) as connection:
        rows = connection.execute(
            "SELECT 1 FROM current_stages WHERE stage = 'pack' AND fingerprint = $1", [release.fingerprint]
        ).fetchall()
    return bool(rows)
