"""The scratch database of steps: private, within its memory, gone with all that it spilled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipeline.store.sql import open_scratch, read_up_to


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


def test_databases_beside_each_other_have_their_own_tables_and_limits(tmp_path: Path) -> None:
    def limit(sql: Any) -> Any:
        return sql.execute("SELECT current_setting('memory_limit')").fetchone()

    with open_scratch(str(tmp_path), 2) as sql, open_scratch(str(tmp_path), 1) as other:
        other.execute("CREATE TABLE made AS SELECT 2 AS n")
        assert (limit(sql), limit(other)) == (("1.5 GiB",), ("715.2 MiB",))  # libraries take the rest of 2 and 1 GB
        assert sql.execute("SHOW TABLES").fetchall() == []


def test_reading_ends_where_rows_take_more_than_is_allowed(tmp_path: Path) -> None:
    with open_scratch(str(tmp_path), 1) as sql:
        for most_bytes, fits in ((None, True), (2_100_000, True), (1_999_999, False), (0, False)):
            rows = read_up_to(sql, "SELECT i FROM range(250000) t(i) ORDER BY i", most_bytes)
            assert (rows is not None) == fits
            assert rows is None or rows["i"].to_pylist() == list(range(250_000))
        assert read_up_to(sql, "SELECT 1::INTEGER AS one WHERE false", 0).num_rows == 0
