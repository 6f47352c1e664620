"""`plantmix query` with statements of a stranger: nothing outside the work folder's tables is read, nothing written."""

from __future__ import annotations

import csv
import io
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb
import pytest

from manifests.contract.catalog import Catalog
from manifests.contract.reader import open_sandbox
from manifests.errors import ConfigError
from pipeline.cli import main
from pipeline.commands.query import _check_reads, print_query


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A work folder with one table file, beside a file that is none of its."""
    monkeypatch.chdir(tmp_path)
    with Catalog.open("work"):
        Path("work/tables/ingest").mkdir(parents=True)
    duckdb.sql("SELECT 42 AS answer").write_parquet("work/tables/ingest/part.parquet")
    duckdb.sql("SELECT 'http://u:pw@a/' AS url").write_parquet("work/tables/ingest/web-1-secrets.parquet")
    Path("secret.csv").write_text("a,b\n1,2\n")
    Path("work/beside.csv").write_text("a,b\n1,2\n")
    return "work"


def cpu_seconds() -> float:
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def everything(folder: str = ".") -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


OUTSIDE = (
    "SELECT * FROM read_csv('secret.csv')",
    "SELECT * FROM 'secret.csv'",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_csv('work/tables/../../secret.csv')",
    "SELECT * FROM read_csv('work/beside.csv')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM glob('*')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM read_csv('http://127.0.0.1:9/x.csv')",
    "SELECT * FROM enable_logging(storage := 'file', storage_path := 'logs')",
    "SELECT * FROM enable_profiling(format := 'json', save_location := 'profile.json')",
    "EXPLAIN ANALYZE SELECT * FROM read_csv('secret.csv')",
    "SELECT * FROM read_parquet('work/tables/ingest/web-1-secrets.parquet')",
    "SELECT * FROM read_parquet('work/tables/ingest/*.parquet')",
    "SELECT * FROM workdir",
)


def test_no_file_outside_the_tables_is_read(workdir: str) -> None:
    before = everything()
    with open_sandbox(workdir, 1, str(Path("spill").resolve())) as connection:
        for sql in OUTSIDE:
            with pytest.raises(duckdb.Error):
                connection.sql(sql).fetchall()
    with pytest.raises(ConfigError, match="query: "):
        print_query(workdir, OUTSIDE[0], "table")
    assert everything() == before


def test_a_script_that_comes_by_a_pipe_may_query(workdir: str) -> None:
    """The process of a query would run the script again, from a file called <stdin>."""
    script = f"from pipeline.commands.query import print_query\nprint_query({workdir!r}, 'SELECT 42 AS a', 'json')"
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [{"a": 42}]


WRITING = (
    "EXPLAIN ANALYZE COPY (SELECT 1) TO 'written.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO 'work/tables/ingest/part.parquet' (USE_TMP_FILE false)",
    "explain(analyze)copy (SELECT 1) TO 'work/tables/ingest/part.parquet' (USE_TMP_FILE false)",
    "EXPLAIN (ANALYZE, FORMAT json) COPY (SELECT 1) TO 'work/tables/ingest/part.parquet' (USE_TMP_FILE false)",
    "EXPLAIN /* SELECT */ ANALYZE COPY (SELECT 1) TO 'work/tables/ingest/part.parquet' (USE_TMP_FILE false)",
    "/* */ EXPLAIN ANALYZE COPY (SELECT 1) TO 'work/tables/ingest/part.parquet' (USE_TMP_FILE false)",
    "EXPLAIN ANALYZE INSTALL httpfs",
    "EXPLAIN ANALYZE DROP VIEW candidates",
    "EXPLAIN ANALYZE CHECKPOINT catalog",
    "EXPLAIN COPY (SELECT 1) TO 'written.csv'",
    "LOAD httpfs",
    "PRAGMA enable_profiling",
    "CALL pragma_version()",
    "ATTACH 'other.duckdb'",
)
READING = (
    "FROM stages",
    "WITH x AS (SELECT 1 AS a) SELECT * FROM x;",
    "DESCRIBE stages",
    "SUMMARIZE stages",
    "EXPLAIN ANALYZE SELECT * FROM stages",
    "EXPLAIN (FORMAT json) SELECT * FROM stages",
    "EXPLAIN (ANALYZE, FORMAT json) SELECT * FROM stages",
    "EXPLAIN (SELECT 1)",
    "SELECT * FROM read_parquet('work/tables/ingest/part.parquet')",
)


def test_statements_read_the_tables_and_write_load_or_set_nothing(workdir: str) -> None:
    before = everything()
    for sql in WRITING:
        with pytest.raises(ConfigError, match="query: "):
            print_query(workdir, sql, "table")
        assert everything() == before, sql
    with open_sandbox(workdir, 1, str(Path("spill").resolve())) as connection:
        for sql in READING:
            _check_reads(workdir, sql)
            connection.sql(sql).fetchall()


def test_duckdb_holds_the_locks_itself(workdir: str) -> None:
    """The check of statements is one wall, DuckDB's settings are another: each holds without the other."""
    with open_sandbox(workdir, 1, str(Path("spill").resolve())) as connection:
        for sql in (
            "SET enable_external_access = true",
            "SET lock_configuration = false",
            "SET allowed_directories = ['/']",
            "COPY (SELECT 1) TO 'written.csv'",
            "COPY (SELECT 1) TO 'work/tables/ingest/new.parquet'",
            "ATTACH 'other.duckdb'",
            "LOAD httpfs",
            "DELETE FROM catalog.stages",
        ):
            with pytest.raises(duckdb.Error):
                connection.execute(sql)
    assert not Path("written.csv").exists()


def test_time_is_limited(workdir: str) -> None:
    sql = "SELECT sum(a.range * b.range) FROM range(100000000) a, range(10000000) b"
    with pytest.raises(ConfigError, match=r"query: stopped after 0\.5 s; .* --seconds"):
        print_query(workdir, sql, "table", seconds=0.5)


def test_memory_is_limited_within_duckdb_and_for_the_answer(workdir: str) -> None:
    with pytest.raises(ConfigError, match=r"query: .*[Mm]emory"):
        print_query(workdir, "SELECT list(range) FROM range(100000000)", "table", memory_gb=0.25)
    with pytest.raises(ConfigError, match=r"query: the answer takes more than 0\.25 GB"):
        print_query(workdir, "SELECT range FROM range(1000000000)", "table", memory_gb=0.25)


def test_time_and_memory_are_limited_within_one_call_of_a_function(workdir: str) -> None:
    before = cpu_seconds()
    with pytest.raises(ConfigError, match=r"query: stopped after 0\.2 s"):
        print_query(workdir, "SELECT levenshtein(repeat('a', 100000), repeat('b', 200000))", "table", seconds=0.2)
    assert cpu_seconds() - before < 5, "it went on until the function returned"
    with pytest.raises(ConfigError, match=r"query: .*[Mm]emory"):
        print_query(workdir, "SELECT length(repeat('a', 3900000000))", "table", memory_gb=0.25)


def test_what_was_spilled_is_gone_when_time_or_memory_is_over(workdir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("spilled").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(Path("spilled").resolve()))
    sql = "SELECT md5(range::VARCHAR) AS h, repeat('x', 99) FROM range(1000000000) ORDER BY h"
    with pytest.raises(ConfigError, match=r"query: (stopped after 2 s|.*[Mm]emory)"):
        print_query(workdir, sql, "table", memory_gb=0.25, seconds=2)
    assert list(Path("spilled").iterdir()) == []


def test_csv_holds_no_formula_and_json_the_exact_text(workdir: str, capfd: pytest.CaptureFixture[str]) -> None:
    texts = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "a=b", "Rosa"]
    listed = ", ".join("'" + text.replace("'", "''") + "'" for text in texts)
    sql = f"SELECT unnest([{listed}]) AS text, -5 AS number"
    print_query(workdir, sql, "csv")
    sys.stdout.flush()
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert [row["text"] for row in rows] == [f"'{text}" for text in texts[:5]] + texts[5:]
    assert {row["number"] for row in rows} == {"-5"}
    print_query(workdir, sql, "json")
    assert [row["text"] for row in json.loads(capfd.readouterr().out)] == texts


def test_neither_answer_nor_message_steers_the_terminal(workdir: str, capfd: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT chr(27) || '[2J' || chr(155) || 'x' AS text"
    for layout in ("table", "csv", "json"):
        assert main(["query", workdir, sql, "--format", layout]) == 0
        out = capfd.readouterr().out
        assert not {"\x1b", "\x9b"} & set(out), layout
        assert "\\u001b[2J\\u009bx" in out, layout
    assert main(["query", workdir, 'SELECT * FROM "\x1b[2J"']) == 2
    assert "\x1b" not in capfd.readouterr().err
