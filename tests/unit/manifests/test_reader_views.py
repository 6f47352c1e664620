"""Every view of a work folder works on an empty and on a filled catalogue, and says what it holds."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.contract import tables
from manifests.contract.catalog import Catalog
from manifests.contract.reader import SAMPLE_VIEWS, open_reader, read_status
from manifests.contract.records import Funnel, PartFile, PartRecord, StageRecord
from manifests.errors import ConfigError, IntegrityError
from pipeline.config import STAGES

JOINED_VIEWS = ("funnel", "samples", "conflicts", "hosts", "views")


def empty_folder(workdir: Path) -> Path:
    with Catalog.open(str(workdir)):
        pass
    return workdir


def value_of(kind: pa.DataType, number: int) -> Any:
    if pa.types.is_string(kind):
        return f"text {number}"
    if pa.types.is_boolean(kind):
        return number % 2 == 0
    if pa.types.is_map(kind):
        return [("type", f"text {number}")]
    if pa.types.is_list(kind):
        return [value_of(kind.value_type, number)] * number
    if pa.types.is_struct(kind):
        return {field.name: value_of(field.type, number) for field in kind}
    return number


def rows_of(schema: pa.Schema, num_rows: int) -> pa.Table:
    return pa.table(
        {field.name: [value_of(field.type, number) for number in range(num_rows)] for field in schema}, schema=schema
    )


def filled_folder(workdir: Path, num_rows: int = 3) -> Path:
    """Two parts of every per-sample table in the current versions, and one of a version that is not current."""
    with Catalog.open(str(workdir)) as catalog:
        for stage in STAGES:
            for version in (f"{stage}-old", f"{stage}-new"):
                catalog.open_stage(stage, version, {})
        for view, (stage, schema, _) in SAMPLE_VIEWS.items():
            for version, position in ((f"{stage}-old", 0), (f"{stage}-new", 1), (f"{stage}-new", 0)):
                rows = rows_of(schema, num_rows)
                path = f"tables/{view} it's [{version}] {position}.parquet"
                (workdir / "tables").mkdir(exist_ok=True)
                pq.write_table(rows, workdir / path)
                file = PartFile(view, path, num_rows, 1, "00")
                key = f"{view}-{version}-{position}"
                record = PartRecord(key, stage, view, "", (file,), Funnel(num_rows, num_rows), {}, 0.1, 1)
                catalog.commit_parts(version, {position: record})
    return workdir


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Only read; a test that changes one makes its own."""
    return {
        "empty": empty_folder(tmp_path_factory.mktemp("empty")),
        "filled": filled_folder(tmp_path_factory.mktemp("filled")),
    }


@pytest.mark.parametrize(("state", "num_rows"), [("empty", 0), ("filled", 6)])
def test_every_view_can_be_read(folders: dict[str, Path], state: str, num_rows: int) -> None:
    with open_reader(str(folders[state])) as connection:
        for view, (_, schema, _) in SAMPLE_VIEWS.items():
            found = connection.sql(f"SELECT * FROM {view}").to_arrow_table()
            assert (view, found.column_names, found.num_rows) == (view, schema.names, num_rows)
        for view in JOINED_VIEWS:
            connection.sql(f"SELECT * FROM {view}").to_arrow_table()
        assert (connection.execute("SELECT count(*) FROM hosts").fetchall()[0][0] > 0) == (state == "filled")


def test_types_are_the_contracts_in_both_states(folders: dict[str, Path]) -> None:
    kinds = {}
    for name, folder in folders.items():
        with open_reader(str(folder)) as connection:
            kinds[name] = connection.execute(
                "SELECT table_name, column_name, data_type FROM duckdb_columns() "
                "WHERE database_name = 'memory' AND NOT internal ORDER BY ALL"
            ).fetchall()
    assert kinds["empty"] == kinds["filled"]
    assert len(kinds["empty"]) > 100


def test_a_moved_folder_is_read_where_it_lies_now(folders: dict[str, Path], tmp_path: Path) -> None:
    moved = tmp_path / "it's [there]"
    shutil.copytree(folders["filled"], moved)
    with open_reader(str(moved)) as connection:
        assert connection.execute("SELECT count(*) FROM samples WHERE shard IS NOT NULL").fetchall()[0][0] > 0


def test_every_table_and_view_says_what_it_holds(folders: dict[str, Path]) -> None:
    with open_reader(str(folders["filled"])) as connection:
        listed = dict(connection.execute("SELECT name, about FROM views").fetchall())
        silent = connection.execute(
            "SELECT view_name FROM duckdb_views() WHERE NOT internal AND database_name = 'memory' "
            "AND coalesce(comment, '') = ''"
        ).fetchall()
        there = {
            row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables() WHERE NOT internal").fetchall()
        }
    assert silent == []
    assert set(SAMPLE_VIEWS) | set(JOINED_VIEWS) <= set(listed)
    assert {"stages", "parts", "files", "mixes", "releases", "shards", "proxy_runs"} <= there & set(listed)


def test_the_catalogue_cannot_be_written_through_a_reader(folders: dict[str, Path]) -> None:
    with open_reader(str(folders["empty"])) as connection, pytest.raises(Exception, match="read-only"):
        connection.execute("DELETE FROM catalog.main.parts")


def test_funnel_view_repeats_the_sealed_counts(tmp_path: Path) -> None:
    with Catalog.open(str(tmp_path)) as catalog:
        catalog.open_stage("ingest", "v1", {})
        catalog.seal_stage(StageRecord("ingest", "v1", Funnel(10, 7, {"a": 2, "b": 1}), {}))
        catalog.open_stage("fetch", "f1", {})
    with open_reader(str(tmp_path)) as connection:
        rows = connection.execute("SELECT * FROM funnel ORDER BY ALL").fetchall()
    assert rows == [
        ("fetch", None, None, None, None, False),
        ("ingest", 10, 7, "a", 2, True),
        ("ingest", 10, 7, "b", 1, True),
    ]


def test_a_folder_without_a_catalogue(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no catalogue .* here; give the work folder of a build"):
        open_reader(str(tmp_path))
    with pytest.raises(ConfigError, match=r"no catalogue .* here; give the work folder of a build"):
        read_status(str(tmp_path))
    (tmp_path / "status.json").write_text(json.dumps({"name": "demo"}))
    assert read_status(str(tmp_path)) == {"name": "demo"}


def test_a_status_that_was_cut_is_named(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"name": "de')
    with pytest.raises(
        IntegrityError, match=r"status\.json: damaged .*the next build or `plantmix repair` writes it anew"
    ):
        read_status(str(tmp_path))


def test_sample_id_is_stable_and_keeps_source_and_key_apart() -> None:
    assert tables.sample_id("gbif", "123") == "96aa7c5cc23ec6b3ff76762911bc3c2f"  # ids of built datasets hang on it
    assert tables.sample_id("a", "b") != tables.sample_id("ab", "")


def test_columns_that_an_earlier_version_did_not_write_are_null(tmp_path: Path) -> None:
    folder = filled_folder(tmp_path)
    for path in (folder / "tables").glob("decisions*"):
        pq.write_table(pq.read_table(path).drop_columns(["kept_because", "conflicts"]), path)
    with open_reader(str(folder)) as connection:
        rows = connection.execute("SELECT sample_id, kept_because, conflicts FROM decisions ORDER BY 1").fetchall()
        assert rows == [(f"text {number}", None, None) for number in (0, 0, 1, 1, 2, 2)]
        assert connection.execute("SELECT kept_because FROM samples LIMIT 1").fetchall() == [(None,)]
        assert connection.execute("FROM conflicts").fetchall() == []


def test_a_reader_takes_no_more_memory_than_a_build_and_spills_out_of_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spilled = tmp_path / "t"
    spilled.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spilled))
    with open_reader(str(empty_folder(tmp_path / "work"))) as connection:
        (limit,) = connection.execute("SELECT current_setting('memory_limit')").fetchone()
        assert limit == "3.7 GiB"
        connection.execute("SET memory_limit = '40MB'; SET threads = 1; CREATE TABLE many AS FROM range(20_000_000)")
        assert [*spilled.iterdir()], "nothing was spilled, so this shows nothing"
        assert not (tmp_path / ".tmp").exists()
    assert [*spilled.iterdir()] == []
