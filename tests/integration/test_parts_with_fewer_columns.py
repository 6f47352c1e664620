"""A work folder whose pictures an earlier version measured, with fewer columns, goes on without reading them again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from building import ROOT, build_own_pictures

from manifests.contract import tables
from manifests.contract.reader import open_reader
from pipeline.stages.fetch import stage as fetch
from pipeline.store import buckets

PHOTOS = sorted((ROOT / "tests/photos").glob("*.jpg"))
NEW_COLUMNS = ("has_camera", "colour_std", "phash_mirrored")


@pytest.mark.parametrize("num_buckets", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_columns_that_older_parts_lack_are_null(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_buckets: int
) -> None:
    monkeypatch.setattr(buckets, "ROW_BYTES", 4e9 / (6 // num_buckets))
    (tmp_path / "pics/fruit").mkdir(parents=True)
    for photo in PHOTOS[:4]:
        shutil.copy(photo, tmp_path / "pics/fruit")
    older = pa.schema([field for field in tables.FETCHED if field.name not in NEW_COLUMNS])
    with monkeypatch.context() as then:
        then.setitem(fetch.STAGE.tables, "fetched", older)
        build_own_pictures(tmp_path, "--to", "fetch")
    for photo in PHOTOS[4:6]:
        shutil.copy(photo, tmp_path / "pics/fruit")
    build_own_pictures(tmp_path)
    with open_reader(str(tmp_path / "work")) as sql:
        for table in ("facts", "fetched"):
            rows = sql.execute(
                f"SELECT record_key, has_camera, colour_std IS NULL FROM {table} JOIN candidates USING (sample_id) "
                "ORDER BY record_key"
            ).fetchall()
            names = [f"fruit/{photo.name}" for photo in PHOTOS[:6]]
            assert rows == list(zip(names, [None] * 4 + [False] * 2, [True] * 4 + [False] * 2, strict=True))
        parts = sql.execute("SELECT num_rows FROM files WHERE table_name = 'fetched' ORDER BY 1").fetchall()
    assert parts == [(2,), (4,)], "the first four were read once"
