"""Parquet parts and shard plans do not depend on how rows come or on how many threads sorted them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests import tables
from pipeline.captions.settings import TextSettings
from pipeline.runner.work import Execution
from pipeline.stages.pack_arrange import ArrangeInputs, GatherInputs, PlaceRange, ShardGroup, arrange, gather
from pipeline.store.files import Files
from pipeline.store.sql import copy_sorted, open_scratch, view_parquet
from pipeline.store.writing import TableWriter, private_bytes, write_table

DUCKDB_ROW_GROUP = 122_880  # where it cuts its batches when it sorts on more than one thread

SCHEMA = pa.schema([("id", pa.string()), ("number", pa.int64()), ("list", pa.list_(pa.string()))])


def groups(path: str) -> list[int]:
    metadata = pq.ParquetFile(path).metadata
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


@pytest.mark.parametrize("cuts", [[2500], [1] * 2500, [999, 1, 0, 1499, 1], [0, 1000, 1000, 500]])
def test_a_table_is_the_same_however_its_rows_come(tmp_path: Path, cuts: list[int]) -> None:
    numbers = range(2500)
    rows = pa.table(
        {"number": numbers, "id": [f"id {n % 97}" for n in numbers], "list": [["x"] * (n % 3) for n in numbers]}
    )
    whole = TableWriter(str(tmp_path), "t", "whole.parquet", SCHEMA, 1000)
    whole.write(rows)
    expected = whole.close()
    writer = TableWriter(str(tmp_path), "t", "pieces.parquet", SCHEMA, 1000)
    start = 0
    for cut in cuts:
        writer.write(rows.slice(start, cut))
        start += cut
    file = writer.close()
    assert (file.sha256, file.num_bytes, file.num_rows) == (expected.sha256, expected.num_bytes, 2500)
    assert groups(file.temp) == [1000, 1000, 500]
    assert pq.read_table(file.temp).equals(rows.select(SCHEMA.names).cast(SCHEMA))
    assert not (tmp_path / "pieces.parquet").exists()


@pytest.mark.parametrize("cuts", [[250], [1] * 250, [99, 1, 0, 149, 1]])
def test_a_row_group_of_long_texts_ends_earlier(tmp_path: Path, cuts: list[int]) -> None:
    ids = [f"{n:03d}" + "x" * (397 if n < 100 else 7) for n in range(250)]
    rows = pa.table({"id": ids, "number": range(250), "list": [[]] * 250}, schema=SCHEMA)
    writer = TableWriter(str(tmp_path), "t", "t.parquet", SCHEMA, 100, row_group_bytes=20_000)
    start = 0
    for cut in cuts:
        writer.write(rows.slice(start, cut))
        start += cut
    file = writer.close()
    assert groups(file.temp) == [51, 90, 100, 9]  # 50 rows of 400 bytes are not above 20,000; 49 and 41 of 10 are
    assert pq.read_table(file.temp).equals(rows)


def test_an_empty_table_has_its_columns(tmp_path: Path) -> None:
    file = write_table(str(tmp_path), "t", "deep/er/empty.parquet", SCHEMA.empty_table(), SCHEMA)
    assert file.num_rows == 0
    assert pq.read_schema(file.temp).names == SCHEMA.names
    with open_scratch(str(tmp_path), 1) as sql:
        view_parquet(sql, "nothing", [file.temp])
        assert sql.execute("SELECT count(*) FROM nothing").fetchall() == [(0,)]


def test_private_bytes_are_described_by_their_content(tmp_path: Path) -> None:
    file = private_bytes(str(tmp_path), "side_file", "releases/a/b.json", b"{}", 3)
    assert Path(file.temp).read_bytes() == b"{}"
    assert (file.num_rows, file.num_bytes, file.sha256[:8]) == (3, 2, "44136fa3")


def test_sorting_on_more_threads_writes_the_same_file(tmp_path: Path) -> None:
    num_rows = 2 * DUCKDB_ROW_GROUP + 5_000
    hashes = set()
    for num_threads in (1, 2, 5):
        with duckdb.connect(config={"threads": num_threads, "preserve_insertion_order": False}) as sql:
            query = f"SELECT md5(i::VARCHAR) AS id, i AS number, [] AS list FROM range({num_rows}) t(i)"
            file = copy_sorted(sql, query, "id", TableWriter(str(tmp_path), "t", "t.parquet", SCHEMA))
        assert groups(file.temp) == [100_000, 100_000, num_rows - 200_000]
        hashes.add(file.sha256)
    ids = pq.read_table(file.temp, columns=["id"])["id"].to_pylist()
    assert ids == sorted(set(ids))
    assert len(hashes) == 1


def test_scratch_is_removed_after_work_and_after_errors(tmp_path: Path) -> None:
    with open_scratch(str(tmp_path), 1) as sql:
        sql.execute("CREATE TABLE t AS SELECT range AS i FROM range(1000)")
    with pytest.raises(duckdb.Error), open_scratch(str(tmp_path), 1) as sql:
        sql.execute("SELECT * FROM nowhere")
    assert list(tmp_path.glob("scratch/*")) == []


def test_every_sample_of_a_large_split_is_in_the_row_group_of_its_shard(tmp_path: Path) -> None:
    """Above 122,880 samples the batches of a sorted query end where DuckDB likes, not where a shard does."""
    num_rows, size = DUCKDB_ROW_GROUP + 3_000, 1_000
    ids = [f"{number:032x}" for number in range(num_rows)]

    def written(name: str, schema: pa.Schema, **columns: Any) -> Files:
        filled = {field.name: columns.get(field.name, pa.nulls(num_rows, field.type)) for field in schema}
        pq.write_table(pa.table(filled, schema=schema), tmp_path / f"{name}.parquet")
        return Files((str(tmp_path / f"{name}.parquet"),))

    ranks = [(number * 7919) % num_rows for number in range(num_rows)]
    assert len(set(ranks)) == num_rows
    inputs = GatherInputs(
        draws=written(
            "draws", tables.DRAWS, sample_id=ids, copy=[0] * num_rows, split=["train"] * num_rows, rank=ranks
        ),
        candidates=written("candidates", tables.CANDIDATES, sample_id=ids, source=["s"] * num_rows),
        facts=written("facts", tables.FACTS, sample_id=ids),
        captions=written("captions", tables.CAPTIONS, sample_id=ids, texts=[[]] * num_rows),
        extra_captions=Files(),
        texts=TextSettings(),
        by_bytes=False,
    )
    run = Execution(str(tmp_path), 1, "x", None)
    (gathered,) = gather(inputs, run).files
    arranging = ArrangeInputs(Files((gathered.temp,)), ShardGroup("train"), PlaceRange(), size, None)
    (file,) = arrange(arranging, run).files
    assert groups(file.temp) == [size] * 125 + [num_rows - 125 * size]
    assert pq.read_table(file.temp, columns=["rank"])["rank"].to_pylist() == list(range(num_rows))
    assert set(pq.read_table(file.temp, columns=["txt"])["txt"].to_pylist()) == {""}  # no caption: an empty text


def test_a_step_spills_where_no_step_made_a_folder_before(tmp_path: Path) -> None:
    """DuckDB makes its folder only when memory is short, and one level alone."""
    with open_scratch(str(tmp_path / "new"), 0.256) as sql:
        (num,) = sql.sql(
            "SELECT count(*) FROM (SELECT md5(i::VARCHAR) AS a, md5((i + 1)::VARCHAR) AS b FROM range(6000000) t(i) "
            "ORDER BY a, b OFFSET 5)"
        ).fetchall()
        assert num == (5_999_995,)
    assert not list((tmp_path / "new/scratch").iterdir())
