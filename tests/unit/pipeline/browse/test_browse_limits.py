"""What may be read, for how long, and while a build holds the catalogue."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import HTTPCookieProcessor, build_opener

import pytest
from process_tree import below, is_running
from starlette.testclient import TestClient

from manifests.errors import ConfigError, RunError
from pipeline.browse import index
from pipeline.browse import snapshot as snapshot_module
from pipeline.browse.codes import Codes
from pipeline.browse.image_index import ImageIndex
from pipeline.browse.index import make_index
from pipeline.browse.pictures import read_picture
from pipeline.browse.snapshot import FACETS_FILE, IMAGES_FILE, open_snapshot
from pipeline.browse.sql_box import MAX_ROWS, ask

# one long call of a function that takes little memory
UNINTERRUPTED = "SELECT levenshtein(repeat('a', 100000), repeat('b', 200000))"
HOLD = """
import sys
from manifests.catalog import Catalog
with Catalog.open(sys.argv[1]):
    print("held", flush=True)
    input()
"""


def cpu_seconds() -> float:
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


REFUSED = (
    "COPY (SELECT 1) TO '/tmp/taken.csv'",
    "SELECT 1; SELECT 2",
    "SET memory_limit = '100GB'",
    "DROP TABLE session.images",
    "CREATE TABLE a AS SELECT 1",
    "DELETE FROM session.images",
    "ATTACH '/tmp/a.duckdb'",
    "INSTALL httpfs",
    "PRAGMA database_list",
    "EXPLAIN ANALYZE DROP TABLE session.images",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM read_text('http://127.0.0.1:1/')",
    "SELEC 1",
    "SELECT '" + "x" * 10_001 + "'",
)


def test_only_reading_of_the_views_is_taken(client: TestClient, image_index: ImageIndex) -> None:
    for statement in REFUSED:
        page = client.get("/sql", params={"sql": statement})
        assert page.status_code == 400, statement
        assert 'role="alert"' in page.text, statement
        assert image_index.rows("SELECT count(*) AS num FROM session.images")[0]["num"] == 22, statement


def test_no_file_beside_the_tables_can_be_read_by_sql(image_index: ImageIndex, work: Path) -> None:
    for place in (work / "catalog.duckdb", work / "tables" / ".." / "status.json", work / "pool"):
        assert "Permission" in ask(image_index.snapshot, f"SELECT * FROM read_text('{place}')").error


def test_a_statement_is_stopped_when_it_takes_too_long(image_index: ImageIndex) -> None:
    endless = "SELECT count(*) FROM range(100000000000) a, range(1000000) b WHERE a.range + b.range = 7"
    assert "stopped after 0.3 s" in ask(image_index.snapshot, endless, seconds=0.3).error


def test_a_statement_is_stopped_within_one_call_of_a_function(image_index: ImageIndex) -> None:
    before = cpu_seconds()
    assert "stopped after 0.2 s" in ask(image_index.snapshot, UNINTERRUPTED, seconds=0.2).error
    assert cpu_seconds() - before < 5, "it went on until the function returned"


def test_what_a_function_allocates_is_limited_too(image_index: ImageIndex) -> None:
    assert "Memory" in ask(image_index.snapshot, "SELECT length(repeat('a', 3900000000))").error


@pytest.mark.slow
def test_a_spilled_statement_that_is_stopped_leaves_no_file(image_index: ImageIndex) -> None:
    def listed() -> list[Path]:
        return sorted(image_index.snapshot.private.rglob("*"))

    before = listed()
    spilling = "SELECT md5(range::VARCHAR) AS h, repeat('x', 99) FROM range(1000000000) ORDER BY h"
    assert re.search("stopped after 2 s|[Mm]emory", ask(image_index.snapshot, spilling, seconds=2).error)
    assert listed() == before


@pytest.mark.slow
def test_the_server_answers_while_a_statement_runs_and_takes_it_along_when_it_ends(work: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "browse", str(work)]
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as served:
        try:
            assert served.stdout is not None
            assert served.stderr is not None
            url = served.stdout.readline().strip()
            assert any("index kept" in line for line in served.stderr)
            base, get = url.partition("/?")[0], build_opener(HTTPCookieProcessor(CookieJar())).open
            assert get(url).status == 200
            asking = threading.Thread(target=ask_until_cut_off, args=(get, f"{base}/sql?sql={quote(UNINTERRUPTED)}"))
            asking.start()
            while not (running := [pid for pid, what in below(served.pid).items() if "spawn_main" in what]):
                assert asking.is_alive()
                time.sleep(0.05)
            for _ in range(5):
                assert b"near duplicate" in get(f"{base}/?reason=near_duplicate").read()
            assert asking.is_alive()
        finally:
            served.kill()
    asking.join()
    while any(map(is_running, running)):
        time.sleep(0.05)


def ask_until_cut_off(get: Callable[[str], Any], address: str) -> None:
    with pytest.raises(OSError):  # noqa: PT011  (the server was killed)
        get(address)


def test_the_first_rows_of_an_answer_are_shown(client: TestClient) -> None:
    page = client.get("/sql", params={"sql": "SELECT range AS n FROM range(1000000)"}).text
    assert page.count("<tr>") == MAX_ROWS + 1
    assert f"The first {MAX_ROWS} rows" in page


@pytest.mark.parametrize("name", ["../catalog.duckdb", "/etc/passwd", "../../pictures/broken.jpg", "", "."])
def test_a_hostile_table_leads_to_no_file_outside(image_index: ImageIndex, name: str) -> None:
    row = {"pool_file": name, "pool_offset": 0, "pool_length": 4, "shard": None, "shard_split": None}
    assert read_picture(image_index.snapshot, row) is None
    row = {"pool_file": None, "shard_split": "train", "shard": name, "jpg_offset": 0, "jpg_length": 4}
    assert read_picture(image_index.snapshot, row) is None


def test_a_pool_file_that_is_a_link_to_elsewhere_is_not_read(
    image_index: ImageIndex, work: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"\xff\xd8 secret")
    link = work / "pool" / "link.tar"
    link.symlink_to(tmp_path / "secret")
    row = {"pool_file": "link.tar", "pool_offset": 0, "pool_length": 4, "shard": None, "shard_split": None}
    assert read_picture(image_index.snapshot, row) is None
    link.unlink()


def test_it_works_while_a_build_holds_the_catalogue_and_lets_one_start(work: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(work)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as build:
        assert build.stdout is not None
        assert build.stdout.readline() == "held\n"
        with open_snapshot(str(work), tmp_path) as snapshot:
            make_index(snapshot)
            build.communicate("\n")
            assert build.returncode == 0
            again = subprocess.run(
                [sys.executable, "-c", HOLD, str(work)], input="\n", capture_output=True, text=True, check=False
            )
            assert (again.returncode, again.stdout) == (0, "held\n")


def test_a_catalogue_that_never_stands_still_is_said(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter(range(1000))
    monkeypatch.setattr(snapshot_module, "_state", lambda path: next(states))
    monkeypatch.setattr(snapshot_module, "SECONDS_BETWEEN_TRIES", 0)
    with pytest.raises(RunError, match="try again in a minute"), open_snapshot(str(work), tmp_path):
        pass


def test_nothing_is_written_where_one_looks(work: Path, tmp_path: Path) -> None:
    def listed() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(work.rglob("*"))}

    before = listed()
    with open_snapshot(str(work), tmp_path) as snapshot:
        make_index(snapshot)
    assert listed() == before


def test_the_index_of_many_parts_is_that_of_one(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for num, images in enumerate((1_000_000, 3)):
        monkeypatch.setattr(index, "PART_IMAGES", images)
        (tmp_path / f"{num}").mkdir()
        with open_snapshot(str(work), tmp_path / f"{num}") as snapshot:
            make_index(snapshot)
            with snapshot.attached(snapshot.index / IMAGES_FILE, read_only=True):
                rows.append(
                    [
                        snapshot.connection.execute(f"SELECT * FROM session.{table} ORDER BY ALL").fetchall()
                        for table in ("images", "taxa")
                    ]
                )
                facets = Codes(snapshot.index / FACETS_FILE)
                rows[-1].append([(facet, facets.counts(facet.name, None)) for facet in facets.facets])
    assert len(rows[0][0]) > 9
    assert rows[0] == rows[1]


def test_a_folder_that_is_neither_is_named(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    with (
        pytest.raises(ConfigError, match=r"neither a work folder .* nor a release"),
        open_snapshot(str(tmp_path), tmp_path / "private"),
    ):
        pass
