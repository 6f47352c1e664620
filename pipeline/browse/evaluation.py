"""Pictures of evaluation sets, which lie outside the work folder: only where the user says so.

A picture is shown when its set was named on the command line, the list of that set names its place below the folder
that was given, and its bytes have the sha256 that `dedup` measured. So no table can make another file be shown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from manifests.contract.reader import literals
from manifests.errors import ConfigError
from manifests.services.untrusted import BrokenTarError
from pipeline.browse.snapshot import Snapshot
from pipeline.fetching.pictures.image import StoredImage, measure_image
from pipeline.fetching.pictures.settings import ImageSettings
from pipeline.sources.files import BytesUnreadable, LocalReader, split_locator
from pipeline.sources.tars.picture_rows import RowReader, picture_columns

_SETTINGS = ImageSettings().of_any_shape()


class EvaluationPictures:
    """The sets that may be shown. `given` holds SET=PLACE for each, PLACE being the folder or file of its config."""

    def __init__(self, snapshot: Snapshot, options: Sequence[str]) -> None:
        """Raise ConfigError for a set that dedup did not measure, or a place that is not there."""
        self._snapshot = snapshot
        self._lists: dict[str, str] = {}
        if not snapshot.release:
            rows = snapshot.connection.execute(
                "SELECT notes, f.path FROM current_stages JOIN stage_parts USING (fingerprint) JOIN parts USING "
                "(part_key) JOIN files f USING (part_key) WHERE f.table_name = 'members'"
            ).fetchall()
            self._lists = {json.loads(notes)["set"]: path for notes, path in rows}
        self._roots: dict[str, str] = {}
        for one in options:
            name, _, set_path = one.partition("=")
            if name not in self._lists:
                sets = ", ".join(self.known) or "none"
                raise ConfigError(f"--evaluation {one}: no evaluation set {name!r} was measured here; known: {sets}")
            if not Path(set_path).exists() or not set_path:
                raise ConfigError(f"--evaluation {one}: {set_path or 'no place'} is not there; give SET=PLACE")
            self._roots[name] = str(Path(set_path) if Path(set_path).is_dir() else Path(set_path).parent)

    @property
    def known(self) -> list[str]:
        """The sets that the last build looked for."""
        return sorted(self._lists)

    @property
    def shown(self) -> list[str]:
        """The sets whose pictures may be shown."""
        return list(self._roots)

    def read(self, sample_id: str, name: str) -> bytes | None:
        """Return the picture of a set that an image leaks, as a JPEG; None where it may not or cannot be shown."""
        root = self._roots.get(name)
        if root is None:
            return None
        with self._snapshot.connection.cursor() as sql:
            rows = sql.execute(
                f"SELECT m.locator, e.image_id FROM leaks l JOIN evaluation e ON e.evaluation_set = l.evaluation_set "
                f"AND e.member = l.evaluation_member JOIN read_parquet({literals([str(self._path(name))])}) m "
                "ON m.member = l.evaluation_member WHERE l.sample_id = $1 AND l.evaluation_set = $2 "
                "AND m.locator IS NOT NULL AND e.image_id IS NOT NULL LIMIT 4",
                [sample_id, name],
            ).fetchall()
        return next((body for row in rows if (body := _read(root, *row)) is not None), None)

    def _path(self, name: str) -> Path:
        return self._snapshot.folder.resolve() / self._lists[name]


def _read(root: str, locator: str, image_id: str) -> bytes | None:
    try:
        inside = (Path(root) / split_locator(locator)[0]).resolve()
        if not inside.is_relative_to(Path(root).resolve()):
            return None
        columns = picture_columns(str(inside)) if inside.suffix == ".parquet" else [None]
    except (BytesUnreadable, BrokenTarError, ValueError):  # a table that was written by hand names no place
        return None
    for column in columns:
        with suppress(BytesUnreadable), RowReader(root, column) if column else LocalReader(root) as reader:
            result = measure_image(reader.read(locator, _SETTINGS.max_body_bytes), _SETTINGS)
            if isinstance(result, StoredImage) and result.original.image_id == image_id:
                return result.body
    return None
