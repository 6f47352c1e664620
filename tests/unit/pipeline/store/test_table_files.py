"""Tables of the work folder and of releases: the same however their rows come or how many threads sorted them."""

from __future__ import annotations

import datetime
import hashlib
import io
import resource
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec import AbstractFileSystem
from row_groups import DUCKDB_ROW_GROUP, groups

from pipeline.store.sql import (
    copy_sorted,
    empty_columns,
    first_half_of_md5,
    open_scratch,
    view_parquet,
)
from pipeline.store.writing import TableWriter, private_bytes, write_table

SCHEMA = pa.schema([("id", pa.string()), ("number", pa.int64()), ("list", pa.list_(pa.string()))])


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


@pytest.mark.parametrize("closed", [False, True])
def test_a_row_group_that_cannot_be_written_is_an_error(tmp_path: Path, closed: bool) -> None:
    """A thread writes it, and what it meets must not stay there; what is left in memory is written at the end."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    num_rows = 50_000 if closed else 400_000
    numbers = np.random.default_rng(0).integers(0, 1 << 62, num_rows)
    rows = pa.table({"id": [f"{n:x}" for n in numbers], "number": numbers, "list": [[]] * num_rows}, schema=SCHEMA)
    writer = TableWriter(str(tmp_path), "t", "t.parquet", SCHEMA, 10_000)

    def write_all() -> None:
        for start in range(0, num_rows, 10_000):
            writer.write(rows.slice(start, 10_000))
        if closed:
            writer.close()

    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_all()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.mark.parametrize("small", [False, True])
def test_only_what_a_release_carries_is_packed_small(tmp_path: Path, small: bool) -> None:
    schema = pa.schema([("sample_id", pa.string()), ("url", pa.string()), ("texts", pa.map_(pa.string(), pa.string()))])
    rows = pa.table({"sample_id": ["0a"], "url": ["https://a.example"], "texts": [[("com", "maple")]]}, schema=schema)
    writer = TableWriter(str(tmp_path), "t", "t.parquet", schema, small=small)
    writer.write(rows)
    file = pq.ParquetFile(writer.close().temp)
    columns = [file.metadata.row_group(0).column(number) for number in range(4)]
    expected = ["ZSTD"] * 4 if small else ["UNCOMPRESSED", "LZ4", "LZ4", "LZ4"]
    assert [column.compression for column in columns] == expected
    assert file.read().equals(rows)


@pytest.mark.parametrize(("small", "counted"), [(True, "sample_id n"), (False, "sample_id text list n")])
def test_texts_of_a_release_have_statistics_where_they_are_sought(tmp_path: Path, small: bool, counted: str) -> None:
    fields: list[Any] = [("sample_id", pa.string()), ("text", pa.string()), ("list", pa.list_(pa.string()))]
    schema = pa.schema([*fields, ("n", pa.int64())])
    writer = TableWriter(str(tmp_path), "t", "t.parquet", schema, small=small)
    writer.write(pa.table({"sample_id": ["a", "b"], "text": ["c", "d"], "list": [["e"], ["f"]], "n": [1, 2]}, schema))
    group = pq.ParquetFile(writer.close().temp).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    found = [column.path_in_schema.partition(".")[0] for column in columns if column.is_stats_set]
    assert found == counted.split()


def test_no_large_dictionary_is_made_of_values_that_differ(tmp_path: Path) -> None:
    """10,000 texts of 36 bytes: 600 that repeat fit a dictionary of 25 kB, of 10,000 others it ends there."""
    schema = pa.schema([("sample_id", pa.string()), ("image_id", pa.string())])
    rows = {
        name: [f"{n % num:032d}" for n in range(10_000)] for name, num in zip(schema.names, (600, 10_000), strict=True)
    }
    writer = TableWriter(str(tmp_path), "t", "t.parquet", schema, 10_000)
    writer.write(pa.table(rows))
    group = pq.ParquetFile(writer.close().temp).metadata.row_group(0)
    repeated, different = (group.column(number) for number in range(2))
    assert repeated.total_uncompressed_size < 10_000 * 4
    assert 10_000 < different.data_page_offset - different.dictionary_page_offset < 40_000  # looked at every 1,024 rows


def test_an_empty_table_has_its_columns(tmp_path: Path) -> None:
    file = write_table(str(tmp_path), "t", "deep/er/empty.parquet", SCHEMA.empty_table(), SCHEMA)
    assert file.num_rows == 0
    assert pq.read_schema(file.temp).names == SCHEMA.names
    with open_scratch(str(tmp_path), 1) as sql:
        view_parquet(sql, "nothing", [file.temp])
        assert sql.execute("SELECT count(*) FROM nothing").fetchall() == [(0,)]


class ReadingAhead(AbstractFileSystem):
    """Holds one file. Like gcsfs, it reads ahead in a task that ends when a file is closed, unless told otherwise."""

    protocol = "ahead"
    content: ClassVar[bytes]
    num_tasks: ClassVar[int] = 0

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self.content), "type": "file"}

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        return []

    def modified(self, path: str) -> datetime.datetime:
        return datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

    def _open(self, path: str, mode: str = "rb", cache_type: str = "adaptive", **options: Any) -> Any:
        type(self).num_tasks += cache_type == "adaptive"
        return io.BytesIO(self.content)


def test_nothing_reads_ahead_in_files_that_duckdb_opens(tmp_path: Path) -> None:
    """It closes none of them."""
    fsspec.register_implementation("ahead", ReadingAhead, clobber=True)
    rows = pa.table({"id": ["a", "b"], "number": [1, 2], "list": [[], ["x"]]}, schema=SCHEMA)
    ReadingAhead.content = Path(write_table(str(tmp_path), "t", "t.parquet", rows, SCHEMA).temp).read_bytes()
    with open_scratch(str(tmp_path), 1) as sql:
        view_parquet(sql, "rows", ["ahead://tables/t.parquet"])
        assert sql.execute("SELECT id, number FROM rows ORDER BY id").fetchall() == [("a", 1), ("b", 2)]
    assert not ReadingAhead.num_tasks


def test_private_bytes_are_described_by_their_content(tmp_path: Path) -> None:
    file = private_bytes(str(tmp_path), "side_file", "releases/a/b.json", b"{}")
    assert Path(file.temp).read_bytes() == b"{}"
    assert (file.num_rows, file.num_bytes, file.sha256[:8]) == (0, 2, "44136fa3")


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


def test_a_column_is_empty_when_no_file_has_a_value_in_it(tmp_path: Path) -> None:
    texts = pa.map_(pa.string(), pa.string())
    schema = pa.schema([("id", pa.string()), ("one", pa.string()), ("none", pa.int64()), ("texts", texts)])
    first, second, nobody = (str(tmp_path / f"{name}.parquet") for name in ("first", "second", "nobody"))
    pq.write_table(pa.Table.from_pylist([{"id": "a"}, {"id": "b"}], schema=schema), first)
    pq.write_table(pa.Table.from_pylist([{"id": "c"}, {"id": "d", "one": "x"}], schema=schema), second)
    pq.write_table(schema.empty_table(), nobody)
    with open_scratch(str(tmp_path), 1) as sql:
        assert empty_columns(sql, [first]) == {"one", "none"}  # nothing is said of what is nested
        assert empty_columns(sql, [first, second, nobody]) == {"none"}
        assert empty_columns(sql, [nobody]) == set()
        view_parquet(sql, "rows", [second, first])
        file = copy_sorted(sql, "FROM rows", "id", TableWriter(str(tmp_path), "t", "t", schema), empty={"none"})
    rows = pq.read_table(file.temp)
    assert rows.schema.equals(schema)
    assert rows["id"].to_pylist() == ["a", "b", "c", "d"]
    assert rows["one"].to_pylist() == [None, None, None, "x"]
    assert rows["none"].null_count == 4


def test_the_first_half_of_an_md5_is_a_number() -> None:
    texts = ["", "a", "shuffle 0 é", "x" * 500]
    halves = [int.from_bytes(hashlib.md5(text.encode()).digest()[:8], "little") for text in texts]
    found = duckdb.sql(f"SELECT {first_half_of_md5('t')} FROM (SELECT unnest($1) AS t)", params=[texts]).fetchall()
    assert [number for (number,) in found] == halves
