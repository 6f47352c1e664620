"""The report of a release, with what only its work folder knows.

The sealed report.html follows from the release alone. Counts of what was dropped lie in the work folder; they are added
while the catalogue still describes this release. A picture that was taken down since is not shown. Writes nothing.
"""

from __future__ import annotations

from manifests.contract.reader import open_reader
from manifests.contract.release import Release
from manifests.contract.takedowns import images_taken_down
from pipeline.releases.opening import open_sql, read_json, samples_path, work_folder_of
from pipeline.sidefiles.dropped import collect_dropped
from pipeline.sidefiles.figures import collect
from pipeline.sidefiles.pages import write_report


def report_of(release: Release) -> str:
    """Return the page as text.

    Raises: what `open_reader` raises.
    """
    workdir = work_folder_of(release)
    gone = images_taken_down(release, workdir)["sample_id"].to_pylist() if workdir else []
    with open_sql() as sql:
        figures = collect(sql, samples_path(release), release.path, release.record, gone)
    dropped = collect_dropped(workdir) if workdir is not None and _is_current(release, workdir) else None
    return write_report(release.record, read_json(release, "mixture.json"), figures, dropped)


def _is_current(release: Release, workdir: str) -> bool:
    """Return whether the views of the catalogue are those that this release was packed from."""
    with open_reader(workdir) as connection:
        rows = connection.execute(
            "SELECT 1 FROM current_stages WHERE stage = 'pack' AND fingerprint = $1", [release.fingerprint]
        ).fetchall()
    return bool(rows)
