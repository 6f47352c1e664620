"""The report of a release, with what only its work folder knows.

The sealed report.html follows from the release alone. What was dropped lies in the work folder; its pictures are added
while the catalogue still describes this release. Writes nothing.
"""

from __future__ import annotations

from typing import Any

from manifests.contract.reader import open_reader
from manifests.contract.release import Release
from pipeline.releases.opening import open_sql, read_json, samples_path, work_folder_of
from pipeline.sidefiles.contact_sheets import collect_duplicates
from pipeline.sidefiles.dropped import collect_dropped
from pipeline.sidefiles.figures import collect
from pipeline.sidefiles.pages import write_report


def report_of(release: Release) -> str:
    """The page as text.

    Raises: RunError while a build holds the catalogue.
    """
    with open_sql() as sql:
        figures = collect(sql, samples_path(release), release.path, release.record)
    workdir = work_folder_of(release)
    collected: dict[str, Any] = {}
    if workdir is not None and _is_current(release, workdir):
        collected = {"duplicates": collect_duplicates(workdir), "dropped": collect_dropped(workdir)}
    return write_report(release.record, read_json(release, "mixture.json"), figures, **collected)


def _is_current(release: Release, workdir: str) -> bool:
    """Whether the views of the catalogue are those that this release was packed from."""
    with open_reader(workdir) as connection:
        rows = connection.execute(
            "SELECT 1 FROM current_stages WHERE stage = 'pack' AND fingerprint = $1", [release.fingerprint]
        ).fetchall()
    return bool(rows)
