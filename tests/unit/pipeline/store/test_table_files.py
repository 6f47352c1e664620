"""Parquet parts and shard plans do not depend on how rows come or on how many threads sorted them."""

from __future__ import annotations

import datetime
import hashlib
import io
import resource
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec import AbstractFileSystem

from manifests import tables
from manifests.errors import IntegrityError
from pipeline.captions.settings import TextChoice, TextSettings
from pipeline.runner.work import Execution
from pipeline.stages.pack_arrange import ARRANGED, ArrangeInputs, GatherInputs, PlaceRange, ShardGroup, arrange, gather
from pipeline.store.files import Files
from pipeline.store.sql import (
    close_scratch,
    copy_sorted,
    empty_columns,
    first_half_of_md5,
    open_scratch,
    read_up_to,
    view_parquet,
)
from pipeline.store.writing import TableWriter, private_bytes, write_table

DUCKDB_ROW_GROUP = 122_880  # where it cuts its batches when it sorts on more than one thread

SCI, EXTRA = ("sci", "Acer"), ("extra_caption_1", "more")
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


def write_rows(folder: Path, name: str, schema: pa.Schema, **columns: list[Any]) -> Files:
    """A table with these columns, the others null."""
    (num_rows,) = {len(column) for column in columns.values()}
    filled = {field.name: columns.get(field.name, pa.nulls(num_rows, field.type)) for field in schema}
    pq.write_table(pa.table(filled, schema=schema), folder / f"{name}.parquet")
    return Files((str(folder / f"{name}.parquet"),))


def to_gather(
    folder: Path, ranks: list[int], text: list[str], texts: list[list[tuple[str, str]]], settings: TextSettings
) -> GatherInputs:
    """Samples with these ranks and texts, and an extra caption for the last one."""
    num = len(ranks)
    ids = [f"{number:032x}" for number in range(num)]
    return GatherInputs(
        draws=write_rows(
            folder, "draws", tables.DRAWS, sample_id=ids, copy=[0] * num, split=["train"] * num, rank=ranks
        ),
        candidates=write_rows(folder, "candidates", tables.CANDIDATES, sample_id=ids, source=["s"] * num),
        facts=write_rows(folder, "facts", tables.FACTS, sample_id=ids),
        captions=write_rows(folder, "captions", tables.CAPTIONS, sample_id=ids, text=text, texts=texts),
        extra_captions=write_rows(
            folder, "extra", tables.EXTRA_CAPTIONS, sample_id=ids[-1:], place=[1], text=["more"], from_sample_id=["f"]
        ),
        texts=settings,
        by_bytes=False,
    )


@pytest.mark.parametrize(
    ("settings", "txt", "texts"),
    [
        (TextSettings(), ["a leaf", "S 1", "a tree"], [[], [], [EXTRA]]),
        (TextSettings(members=("sci",)), ["a leaf", "S 1", "a tree"], [[SCI], [], [SCI, EXTRA]]),
        (
            TextSettings(choices=(TextChoice(any_of=("sci",)),)),
            ["Acer", "S 1", "Acer"],
            [[], [], [EXTRA]],
        ),
    ],
)
def test_only_texts_that_a_shard_needs_are_gathered(
    tmp_path: Path, settings: TextSettings, txt: list[str], texts: list[list[tuple[str, str]]]
) -> None:
    """The second sample has no caption, the third is the only one with a caption of a dropped duplicate."""
    known = [[("sentence", "S 0"), SCI], [("sentence", "S 1"), ("com", "maple")], [SCI]]
    inputs = to_gather(tmp_path, [2, 0, 1], ["a leaf", "", "a tree"], known, settings)
    (gathered,) = gather(inputs, Execution(str(tmp_path), 1, "x", None)).files
    rows = pq.read_table(gathered.temp).sort_by("sample_id")
    assert rows["txt"].to_pylist() == txt
    assert rows["texts"].to_pylist() == texts


@pytest.mark.parametrize("by_bytes", [False, True])
def test_columns_without_a_value_are_left_out_on_the_way_and_come_back(tmp_path: Path, by_bytes: bool) -> None:
    """No sample has a creator or a text that becomes a member, and all have a caption; one alone has a licence."""
    inputs = to_gather(tmp_path, [2, 0, 1], ["a leaf", "a root", "a tree"], [[SCI]] * 3, TextSettings())
    ids = [f"{number:032x}" for number in range(3)]
    licences = write_rows(
        tmp_path, "candidates", tables.CANDIDATES, sample_id=ids, source=["s"] * 3, licence=[None, "CC0", None]
    )
    sizes = write_rows(tmp_path, "facts", tables.FACTS, sample_id=ids, length=[1000, 2000, 3000])
    inputs = replace(inputs, candidates=licences, facts=sizes, extra_captions=Files(), by_bytes=by_bytes)
    run = Execution(str(tmp_path), 1, "x", None)
    (gathered,) = gather(inputs, run).files
    there = set(pq.read_schema(gathered.temp).names)
    assert {"creator", "texts", "image_id", "language"}.isdisjoint(there)
    assert {"sample_id", "licence", "length", "txt", "txt_type", "tar_bytes"} <= there
    limits = (None, 12_000) if by_bytes else (2, None)
    (file,) = arrange(ArrangeInputs(Files((gathered.temp,)), ShardGroup("train"), PlaceRange(), *limits), run).files
    assert groups(file.temp) == [2, 1]
    rows = pq.read_table(file.temp)
    assert rows.schema.equals(ARRANGED)
    assert rows["txt"].to_pylist() == ["a root", "a tree", "a leaf"]
    assert rows["licence"].to_pylist() == ["CC0", None, None]
    assert rows["creator"].null_count == rows["texts"].null_count == 3


def drawn_samples(folder: Path, num: int) -> GatherInputs:
    """Samples with hashes for ids, a third of them drawn twice, in an order of their own; and some that are not."""
    ids = sorted(hashlib.md5(str(number).encode()).hexdigest() for number in range(num))
    draws = [(sample_id, copy) for number, sample_id in enumerate(ids[5:]) for copy in range(1 + (number % 3 == 0))]
    ranks = np.random.default_rng(1).permutation(len(draws)).tolist()
    splits = ["train" if number % 50 else "heldout" for number in range(len(draws))]
    keys, copies = zip(*draws, strict=True)
    told = {"source": ["s"] * num, "record_key": [f"key of {sample_id}" for sample_id in ids]}
    return GatherInputs(
        draws=write_rows(folder, "draws", tables.DRAWS, sample_id=keys, copy=copies, split=splits, rank=ranks),
        candidates=write_rows(folder, "candidates", tables.CANDIDATES, sample_id=ids, **told),
        facts=write_rows(folder, "facts", tables.FACTS, sample_id=ids, image_id=[each[::-1] for each in ids]),
        captions=write_rows(
            folder, "captions", tables.CAPTIONS, sample_id=ids, text=[f"text of {each}" * 8 for each in ids]
        ),
        extra_captions=Files(),
        texts=TextSettings(),
        by_bytes=False,
    )


@pytest.mark.parametrize(("memory_gb", "digits"), [(0.0033, 1), (0.0002, 2)])
def test_a_bucket_that_does_not_fit_the_memory_is_gathered_in_quarters(
    tmp_path: Path, memory_gb: float, digits: int
) -> None:
    """The first memory would hold so many short samples, and is too small for these; the second is for a few only."""
    inputs = drawn_samples(tmp_path, 3_000)
    (whole,) = gather(inputs, Execution(str(tmp_path), 1, "whole", None)).files
    (cut,) = gather(inputs, Execution(str(tmp_path), memory_gb, "cut", None)).files
    first, second = pq.read_table(whole.temp), pq.read_table(cut.temp)
    ids = first["sample_id"].to_pylist()
    assert first["record_key"].to_pylist() == [f"key of {each}" for each in ids]
    assert first["image_id"].to_pylist() == [each[::-1] for each in ids]
    assert first["txt"].to_pylist() == [f"text of {each}" * 8 for each in ids]
    order = [("split", "ascending"), ("rank", "ascending")]
    assert first.equals(first.sort_by(order))
    assert second.sort_by(order).equals(first)
    quarters = [int(each[:digits], 16) // 4 for each in second["sample_id"].to_pylist()]
    assert quarters == sorted(quarters)  # they follow each other
    for number in set(quarters):
        rows = second.filter(pa.array([each == number for each in quarters]))
        assert rows.equals(rows.sort_by(order))


def test_samples_that_no_quarter_parts_are_gathered_all_the_same(tmp_path: Path) -> None:
    """All of these ids begin with eight zeros, and a bucket has no more digits."""
    inputs = to_gather(tmp_path, [2, 0, 1], ["a leaf", "a root", "a tree"], [[SCI]] * 3, TextSettings())
    (file,) = gather(inputs, Execution(str(tmp_path), 1e-9, "x", None)).files
    assert pq.read_table(file.temp)["txt"].to_pylist() == ["a root", "a tree", "a leaf"]


@pytest.mark.parametrize("table", ["candidates", "facts", "captions"])
def test_a_drawn_sample_that_a_table_lacks_is_an_error(tmp_path: Path, table: str) -> None:
    inputs = to_gather(tmp_path, [2, 0, 1], ["a leaf", "a root", "a tree"], [[SCI]] * 3, TextSettings())
    (path,) = getattr(inputs, table).paths
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(IntegrityError, match=f"3 samples of a part are drawn, and {table} has 2 rows of them"):
        gather(inputs, Execution(str(tmp_path), 1, "x", None))


def test_reading_ends_where_rows_take_more_than_is_allowed(tmp_path: Path) -> None:
    with open_scratch(str(tmp_path), 1) as sql:
        for most_bytes, fits in ((None, True), (2_100_000, True), (1_999_999, False), (0, False)):
            rows = read_up_to(sql, "SELECT i FROM range(250000) t(i) ORDER BY i", most_bytes)
            assert (rows is not None) == fits
            assert rows is None or rows["i"].to_pylist() == list(range(250_000))
        assert read_up_to(sql, "SELECT 1::INTEGER AS one WHERE false", 0).num_rows == 0


def test_a_column_is_empty_when_no_file_has_a_value_in_it(tmp_path: Path) -> None:
    texts = pa.map_(pa.string(), pa.string())
    schema = pa.schema([("id", pa.string()), ("one", pa.string()), ("none", pa.int64()), ("texts", texts)])
    first = write_rows(tmp_path, "first", schema, id=["a", "b"])
    second = write_rows(tmp_path, "second", schema, id=["c", "d"], one=[None, "x"])
    nobody = write_rows(tmp_path, "nobody", schema, id=[])
    with open_scratch(str(tmp_path), 1) as sql:
        assert empty_columns(sql, first.paths) == {"one", "none"}  # nothing is said of what is nested
        assert empty_columns(sql, [*first.paths, *second.paths, *nobody.paths]) == {"none"}
        assert empty_columns(sql, nobody.paths) == set()
        view_parquet(sql, "rows", [*second.paths, *first.paths])
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


def test_every_sample_of_a_large_split_is_in_the_row_group_of_its_shard(tmp_path: Path) -> None:
    """Above 122,880 samples the batches of a sorted query end where DuckDB likes, not where a shard does."""
    num_rows, size = DUCKDB_ROW_GROUP + 3_000, 1_000
    ranks = [(number * 7919) % num_rows for number in range(num_rows)]
    assert len(set(ranks)) == num_rows
    run = Execution(str(tmp_path), 1, "x", None)
    (gathered,) = gather(to_gather(tmp_path, ranks, [""] * num_rows, [[]] * num_rows, TextSettings()), run).files
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


def test_a_kept_database_is_empty_again_and_forgets_settings(tmp_path: Path) -> None:
    def limit_and_order(sql: Any) -> tuple[Any, ...]:
        return sql.execute(
            "SELECT current_setting('memory_limit'), current_setting('preserve_insertion_order')"
        ).fetchone()

    with open_scratch(str(tmp_path), 1) as sql:
        sql.register("given", pa.table({"n": [1]}))
        sql.execute(
            "CREATE TABLE made AS FROM given; CREATE VIEW seen AS FROM made; SET preserve_insertion_order = true"
        )
        (kept,) = sql.execute("SELECT current_setting('temp_directory')").fetchone()
    with open_scratch(str(tmp_path), 2) as sql:
        assert sql.execute("SELECT current_setting('temp_directory')").fetchone() == (kept,)
        assert limit_and_order(sql) == ("1.8 GiB", False)
        assert sql.execute("SHOW TABLES").fetchall() == []
        with open_scratch(str(tmp_path), 1) as other:  # one beside it has its own limit
            other.execute("CREATE TABLE made AS SELECT 2 AS n")
            assert (limit_and_order(sql)[0], limit_and_order(other)[0]) == ("1.8 GiB", "953.6 MiB")
            assert sql.execute("SHOW TABLES").fetchall() == []


def test_no_database_is_kept_after_an_error_or_for_another_folder(tmp_path: Path) -> None:
    found = []
    pq.write_table(pa.table({"n": [1]}), io_bytes := io.BytesIO())
    fsspec.filesystem("memory").pipe("/kept/rows.parquet", io_bytes.getvalue())
    for folder, does in (("a", ""), ("a", "fail"), ("a", ""), ("b", ""), ("a", ""), ("a", "read"), ("a", "")):
        with suppress(duckdb.CatalogException), open_scratch(str(tmp_path / folder), 1) as sql:
            found += sql.execute("SELECT current_setting('temp_directory')").fetchone()
            if does == "fail":
                sql.execute("FROM nothing")
            if does == "read":
                view_parquet(sql, "rows", ["memory://kept/rows.parquet"])
                assert sql.execute("FROM rows").fetchall() == [(1,)]
    number = [sorted(set(found), key=found.index).index(each) for each in found]
    assert number == [0, 0, 1, 2, 3, 3, 4]
    close_scratch()
    with open_scratch(str(tmp_path / "a"), 1) as sql:
        assert sql.execute("SELECT current_setting('temp_directory')").fetchone() != (found[-1],)
