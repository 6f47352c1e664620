"""The scratch database of steps: private, within its memory, empty again for the next step, gone when it must be."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.store.sql import close_scratch, open_scratch, read_up_to, view_parquet


def test_scratch_is_removed_after_work_and_after_errors(tmp_path: Path) -> None:
    with open_scratch(str(tmp_path), 1) as sql:
        sql.execute("CREATE TABLE t AS SELECT range AS i FROM range(1000)")
    with pytest.raises(duckdb.Error), open_scratch(str(tmp_path), 1) as sql:
        sql.execute("SELECT * FROM nowhere")
    assert list(tmp_path.glob("scratch/*")) == []


@pytest.mark.slow
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
        assert limit_and_order(sql) == ("1.4 GiB", False)
        assert sql.execute("SHOW TABLES").fetchall() == []
        with open_scratch(str(tmp_path), 1) as other:  # one beside it has its own limit
            other.execute("CREATE TABLE made AS SELECT 2 AS n")
            assert (limit_and_order(sql)[0], limit_and_order(other)[0]) == ("1.4 GiB", "677.1 MiB")
            assert sql.execute("SHOW TABLES").fetchall() == []


def test_no_database_is_kept_after_an_error_or_reading_from_a_store_or_for_another_folder(tmp_path: Path) -> None:
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


def test_reading_ends_where_rows_take_more_than_is_allowed(tmp_path: Path) -> None:
    with open_scratch(str(tmp_path), 1) as sql:
        for most_bytes, fits in ((None, True), (2_100_000, True), (1_999_999, False), (0, False)):
            rows = read_up_to(sql, "SELECT i FROM range(250000) t(i) ORDER BY i", most_bytes)
            assert (rows is not None) == fits
            assert rows is None or rows["i"].to_pylist() == list(range(250_000))
        assert read_up_to(sql, "SELECT 1::INTEGER AS one WHERE false", 0).num_rows == 0
