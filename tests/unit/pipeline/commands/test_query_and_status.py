"""What `query` and `status` print: aligned, whole, and adding up."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from manifests.contract.catalog import Catalog
from manifests.contract.records import Funnel, StageRecord
from manifests.errors import ConfigError
from pipeline.cli import main
from pipeline.commands.query import layout_rows, print_query
from pipeline.commands.status import describe_status


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("work"))
    with Catalog.open(folder) as catalog:
        for stage, funnel, notes in (
            ("ingest", Funnel(1_234_567, 1_234_000, {"invalid_url": 500, "missing_url": 67}), {}),
            ("fetch", Funnel(1_234_000, 1_000_000, {"http_404": 200_000, "read_timeout": 34_000}), {}),
            ("dedup", Funnel(1_000_000, 1_000_000), {"num_hash_pairs": 4321, "radius": 6}),
            ("score", Funnel(900_000, 900_000), {"off": True}),
        ):
            catalog.open_stage(stage, f"{stage}-1", {})
            catalog.seal_stage(StageRecord(stage, f"{stage}-1", funnel, notes))
        catalog.open_stage("mix", "mix-1", {})
        row = {"domain": "plant", "target_share": 0.75, "realised_share": 0.7501, "num_available": 1000}
        catalog.record_mix("mix-1", [{**row, "num_drawn": 1500, "num_epochs": 1.5, "num_heldout": 20}])
        catalog.publish_status({"name": "demo", "running": None, "pid": None})
    return folder


# ---- query


def printed(capfd: pytest.CaptureFixture[str], workdir: str, sql: str, layout: str = "table") -> str:
    assert print_query(workdir, sql, layout) == 0
    sys.stdout.flush()
    return capfd.readouterr().out


def test_ctrl_c_amid_a_query_is_a_stop(
    workdir: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> int:
        raise RuntimeError("Query interrupted")

    monkeypatch.setattr("pipeline.commands.query.print_query", interrupted)
    assert main(["query", workdir, "SELECT 1"]) == 1
    assert capfd.readouterr().err.startswith("plantmix: stopped; ")


def test_a_table_is_aligned(workdir: str, capfd: pytest.CaptureFixture[str]) -> None:
    out = printed(
        capfd, workdir, "SELECT stage, num_in, NULL AS nothing FROM stages WHERE num_in > 0 ORDER BY num_in, stage"
    )
    assert out.splitlines() == [
        "stage    num_in  nothing",
        "------------------------",
        "score    900000",
        "dedup   1000000",
        "fetch   1234000",
        "ingest  1234567",
        "(4 rows)",
    ]


def test_long_cells_are_cut_and_line_breaks_flattened() -> None:
    lines = layout_rows(pa.table({"text": ["a" * 100, "two\nlines\tand a tab", None]}))
    assert lines[2] == "a" * 59 + "…"
    assert lines[3] == "two lines and a tab"
    assert lines[4:] == ["", "(3 rows)"]
    assert layout_rows(pa.table({"a": [True]}))[2:] == ["True", "(1 row)"]
    assert layout_rows(pa.table({"a": [], ">b": []})) == ["a  >b", "-----", "(0 rows)"]


SQL = """SELECT 'it''s "quoted", yes' AS text, [1, 2] AS list, {'a': 1} AS struct, NULL AS none,
    1.50::DECIMAL(5, 2) AS dec, TIMESTAMP '2024-05-01 12:00:00' AS moment, sum(7)::HUGEINT AS big"""


def test_csv_can_be_read_back(workdir: str, capfd: pytest.CaptureFixture[str]) -> None:
    (row,) = csv.DictReader(io.StringIO(printed(capfd, workdir, SQL, "csv")))
    assert row["text"] == 'it\'s "quoted", yes'
    assert json.loads(row["list"]) == [1, 2]
    assert json.loads(row["struct"]) == {"a": 1}
    assert (row["none"], row["dec"], row["big"]) == ("", "1.50", "7")
    assert row["moment"].startswith("2024-05-01 12:00:00")


def test_json_can_be_read_back(workdir: str, capfd: pytest.CaptureFixture[str]) -> None:
    (row,) = json.loads(printed(capfd, workdir, SQL, "json"))
    assert row["text"] == 'it\'s "quoted", yes'
    assert (row["list"], row["struct"], row["none"]) == ([1, 2], {"a": 1}, None)


def test_columns_of_one_name_are_told_apart(workdir: str, capfd: pytest.CaptureFixture[str]) -> None:
    (row,) = json.loads(printed(capfd, workdir, "SELECT 1 AS id, 2 AS id, 3 AS id_1, 4 AS id", "json"))
    assert sorted(row) == ["id", "id_1", "id_1_1", "id_2"]
    assert sorted(row.values()) == [1, 2, 3, 4]


def test_wrong_sql_is_the_users_mistake(workdir: str) -> None:
    for sql in ["SELECT * FROM nowhere", "SELEC 1", "SELECT 1 +"]:
        with pytest.raises(ConfigError, match=r'(?s)query: .*plantmix query .* "SELECT \* FROM views"'):
            print_query(workdir, sql, "table")


def test_only_reading_statements_are_taken(workdir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for sql in [
        "",
        "-- nothing",
        "CREATE TABLE mine (a INTEGER)",
        "DROP VIEW candidates",
        "DELETE FROM stages",
        "COPY (SELECT 1) TO 'written.csv'",
        "SET threads = 1",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY (SELECT 1) TO 'written.csv'",
        "INSTALL httpfs",
    ]:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError, match="query: give one SELECT statement"):
            print_query(workdir, sql, "table")
        assert list(tmp_path.iterdir()) == []


# ---- status


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_every_line_of_status_adds_up(workdir: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", workdir]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("demo, as of 20")
    rows = {line.split()[0]: line for line in lines[3:11]}
    assert list(rows) == ["ingest", "fetch", "dedup", "caption", "score", "select", "mix", "pack"]
    for stage in ("ingest", "fetch"):
        fields = rows[stage].split(None, 4)
        num_in, num_kept, num_dropped = map(number, fields[1:4])
        reasons = [number(reason.split()[0]) for reason in fields[4].split(", ")]
        assert num_in == num_kept + num_dropped == num_kept + sum(reasons)
        assert reasons == sorted(reasons, reverse=True)
    assert rows["ingest"].endswith("500 invalid_url, 67 missing_url")
    assert rows["dedup"].endswith("measured: 4,321 pairs of hashes within 6")
    assert rows["score"].endswith(" off")
    assert rows["caption"].split() == ["caption", "not", "yet"]
    assert rows["mix"].split()[1] == "unfinished"
    assert lines[-1] == "nothing is running"
    (mix,) = (line.split() for line in lines if line.startswith("plant"))
    assert mix == ["plant", "0.7500", "0.7501", "1,000", "1,500", "1.50", "20"]


def test_columns_stay_apart_at_a_billion(workdir: str) -> None:
    stage = {"sealed": True, "in": 10**9, "kept": 10**9, "reasons": {}, "notes": {}, "num_parts": 1}
    status = {"name": "x", "updated_at": "2026-01-01T00:00:00", "mix": [], "running": None, "stages": {"ingest": stage}}
    line = next(line for line in describe_status(status) if line.startswith("ingest"))
    assert line.split()[1:4] == ["1,000,000,000", "1,000,000,000", "0"]


STEP = {"step": "fetch download", "done": 10, "total": 20, "unit": "images", "per_second": 2.0, "seconds_left": 5}


def running(pid: Any, **more: Any) -> str:
    step = {**STEP, **more}
    status = {"name": "x", "updated_at": "2026-01-01T00:00:00", "mix": [], "stages": {}, "running": step, "pid": pid}
    return "\n".join(describe_status(status)).partition("\n\n")[2].rpartition("\n\n")[2]


def test_a_running_and_an_interrupted_build_are_told_apart() -> None:
    assert running(os.getpid()) == "running: fetch download, 10 of 20 images, 2.0/s, about 5 s left"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid in (gone.pid, None, "?"):
        assert running(pid) == "interrupted in fetch download; run the same command to go on"


def test_a_running_fetch_says_what_failed_and_where() -> None:
    shown = running(os.getpid(), reasons={"http_404": 1, "http_5xx": 3}, worst_hosts={"a.org": 3, "b.org": 1})
    assert shown.splitlines()[1:] == [
        "  dropped so far: 3 http_5xx, 1 http_404",
        "  hosts that fail most: a.org (3), b.org (1)",
    ]
    assert running(os.getpid(), done=0, total=0) == "running: fetch download, looking what is to be done"
