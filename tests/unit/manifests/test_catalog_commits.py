"""What the catalogue promises: a part is there whole or not at all, a sealed stage adds up, one driver at a time."""

from __future__ import annotations

import datetime
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pytest
from catalogued import count, part

from manifests.contract import records
from manifests.contract.catalog import Catalog
from manifests.contract.catalog_file import CATALOG_FILE, JOURNAL_FILE, transaction
from manifests.contract.reader import open_reader, read_status
from manifests.contract.records import Funnel, PartFile, StageRecord
from manifests.errors import ConfigError, IntegrityError
from manifests.stores import stamps
from manifests.stores.stamps import changed_ns

SCHEMA = Path(sys.modules[Catalog.__module__].__file__ or "").parent / "schema.sql"


# ---- parts


def test_a_committed_part_comes_back_as_it_was(catalog: Catalog) -> None:
    catalog.open_stage("ingest", "v1", {"a": 1})
    given = part("p1", "tables/a.parquet", "tables/b.parquet")
    catalog.commit_parts("v1", {0: given})
    assert catalog.find_parts(["p1", "p2"]) == {"p1": given}
    assert catalog.find_parts([]) == {}
    assert catalog.parts_of("v1") == [given]
    assert catalog.parts_of("v1", "read") == [given]
    assert catalog.parts_of("v1", "other") == []
    assert catalog.parts_of("v2") == []


def test_parts_come_in_plan_order_whatever_the_order_of_commits(catalog: Catalog) -> None:
    catalog.open_stage("ingest", "v1", {})
    for position in (3, 0, 11, 2, 1):
        catalog.commit_parts("v1", {position: part(f"p{position}", f"{position}.parquet")})
    assert [found.key for found in catalog.parts_of("v1")] == ["p0", "p1", "p2", "p3", "p11"]


def test_commit_is_all_or_nothing(catalog: Catalog) -> None:
    catalog.open_stage("ingest", "v1", {})
    late = PartFile("candidates", "b.parquet", 3, 10, None)  # refused by NOT NULL, at the end
    broken = part("p1", "a.parquet")
    broken = replace(broken, files=(*broken.files, late))
    with pytest.raises(duckdb.ConstraintException):
        catalog.commit_parts("v1", {0: broken})
    assert [count(catalog, table) for table in ("parts", "files", "stage_parts")] == [0, 0, 0]
    catalog.commit_parts("v1", {0: part("p1", "a.parquet")})
    with pytest.raises(duckdb.ConstraintException):  # the same part twice
        catalog.commit_parts("v1", {1: part("p1", "a.parquet")})
    assert [count(catalog, table) for table in ("parts", "files", "stage_parts")] == [1, 1, 1]


def test_of_parts_that_are_committed_together_all_are_there_or_none(catalog: Catalog) -> None:
    catalog.open_stage("ingest", "v1", {})
    together = {position: part(f"p{position}", f"{position}.parquet", f"{position}.tar") for position in (7, 0, 250)}
    late = PartFile("candidates", "9.parquet", 3, 10, None)  # refused by NOT NULL, at the end
    broken = replace(part("p9"), files=(late,))
    with pytest.raises(duckdb.ConstraintException):
        catalog.commit_parts("v1", {**together, 9: broken})
    assert [count(catalog, table) for table in ("parts", "files", "stage_parts")] == [0, 0, 0]
    assert not Path(catalog.workdir, JOURNAL_FILE).exists()
    catalog.commit_parts("v1", together)
    assert catalog.parts_of("v1") == [together[0], together[7], together[250]]
    catalog.commit_parts("v1", {})
    others = {7: part("in the place of p7", "other.parquet"), 8: part("p8", "8.parquet")}
    catalog.commit_parts("v1", others)
    assert catalog.parts_of("v1") == [together[0], others[7], others[8], together[250]]
    catalog.commit_parts("v1", {8: part("of another step", "8 too.parquet", step="collect")})
    assert catalog.parts_of("v1", "read") == [together[0], others[7], others[8], together[250]]


def test_an_exception_inside_a_transaction_leaves_nothing(catalog: Catalog) -> None:
    def stopped() -> None:
        with transaction(catalog._connection):
            catalog._connection.execute("INSERT INTO current_stages VALUES ('ingest', 'v1')")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert count(catalog, "current_stages") == 0


def test_versions_share_parts_by_links(catalog: Catalog) -> None:
    for version in ("v1", "v2"):
        catalog.open_stage("ingest", version, {})
    one, two = part("p1", "a.parquet"), part("p2", "b.parquet")
    catalog.commit_parts("v1", {0: one})
    catalog.commit_parts("v1", {1: two})
    catalog.link_parts("v2", "read", [(0, "p2"), (1, "p1")])
    assert [found.key for found in catalog.parts_of("v2")] == ["p2", "p1"]
    assert [found.key for found in catalog.parts_of("v1")] == ["p1", "p2"]


def test_a_new_plan_of_a_step_ends_the_links_of_the_old_one(catalog: Catalog) -> None:
    """A build killed with parts at 2 and 9, taken up with larger parts, must not count the part at 9 twice."""
    catalog.open_stage("fetch", "v1", {})
    catalog.commit_parts("v1", {2: part("a", "a.parquet")})
    catalog.commit_parts("v1", {9: part("b", "b.parquet")})
    catalog.commit_parts("v1", {0: part("other", "c.parquet", step="collect")})
    catalog.link_parts("v1", "read", [(1, "a"), (2, "b")])
    assert [found.key for found in catalog.parts_of("v1", "read")] == ["a", "b"]
    assert [found.key for found in catalog.parts_of("v1", "collect")] == ["other"]
    catalog.link_parts("v1", "read", [])
    assert catalog.parts_of("v1", "read") == []


def test_parts_like_finds_by_recipe_over_all_versions(catalog: Catalog) -> None:
    for number, (version, recipe) in enumerate((("v1", "r"), ("v2", "r"), ("v2", "other"))):
        catalog.open_stage("ingest", version, {})
        catalog.commit_parts(version, {number: part(f"p{number}", f"{number}.parquet", reuse_key=recipe)})
    assert [found.key for found in catalog.parts_like("ingest", "read", "r")] == ["p0", "p1"]
    assert catalog.parts_like("ingest", "else", "r") == []


# ---- stages


def test_only_sealed_versions_are_found(catalog: Catalog) -> None:
    record = StageRecord("ingest", "v1", Funnel(10, 7, {"invalid_url": 2, "missing_url": 1}), {"domains": {"plant": 7}})
    catalog.open_stage("ingest", "v1", {"z": 1, "a": [1]})
    assert catalog.find_sealed("v1") is None
    assert catalog.seal_stage(record) == record
    assert catalog.find_sealed("v1") == record
    catalog.open_stage("ingest", "v1", {"z": 1, "a": [1]})  # begun again by a later build: stays sealed
    assert catalog.find_sealed("v1") == record
    assert catalog.find_sealed("v2") is None


def test_sealing_twice_replaces_the_reasons(catalog: Catalog) -> None:
    catalog.open_stage("ingest", "v1", {})
    catalog.seal_stage(StageRecord("ingest", "v1", Funnel(10, 7, {"a": 2, "b": 1}), {}))
    again = StageRecord("ingest", "v1", Funnel(10, 8, {"a": 2}), {})
    catalog.seal_stage(again)
    assert catalog.find_sealed("v1") == again


def test_seal_refuses_rows_that_end_nowhere(catalog: Catalog) -> None:
    catalog.open_stage("ingest", "v1", {})
    with pytest.raises(IntegrityError, match="ingest: 1,000 rows came in, but 900 kept \\+ 99 dropped do not add up"):
        catalog.seal_stage(StageRecord("ingest", "v1", Funnel(1000, 900, {"invalid_url": 99}), {}))
    assert catalog.find_sealed("v1") is None
    assert count(catalog, "stage_reasons") == 0


def test_the_current_version_is_the_last_opened_one(catalog: Catalog) -> None:
    for version in ("v1", "v2", "v1"):
        catalog.open_stage("ingest", version, {})
    catalog.open_stage("fetch", "f1", {})
    catalog.forget_current(["fetch", "dedup"])
    rows = catalog._connection.execute("SELECT * FROM current_stages").fetchall()
    assert rows == [("ingest", "v1")]


def test_funnels_add_by_reason() -> None:
    total = Funnel(5, 3, {"a": 2}) + Funnel(4, 1, {"a": 1, "b": 2})
    assert total == Funnel(9, 4, {"a": 3, "b": 2})
    total.check("both")


# ---- inputs


def test_input_hash_on_an_object_store_is_kept_too(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "memory://inputs/source.csv"

    def write(content: bytes) -> None:
        with fsspec.open(address, "wb") as stream:
            stream.write(content)

    write(b"url\n")
    first = catalog.input_sha256(address)
    with monkeypatch.context() as patch:
        patch.setattr("manifests.stores.storage.hash_file", lambda _: pytest.fail("it was read again"))
        assert catalog.input_sha256(address) == first
    write(b"URL\n")
    assert catalog.input_sha256(address) != first


@pytest.mark.parametrize(
    "info",
    [
        {"mtime": 1700000000.0},
        {"LastModified": datetime.datetime.fromtimestamp(1700000000, datetime.UTC)},  # s3fs
        {"updated": "2023-11-14T22:13:20+00:00"},  # gcsfs
        {"mtime": None, "last_modified": datetime.datetime.fromtimestamp(1700000000, datetime.UTC)},  # adlfs
    ],
)
def test_every_file_system_tells_time_its_own_way(info: dict[str, Any]) -> None:
    assert changed_ns(info) == 1700000000 * 10**9
    assert changed_ns({"size": 3, "updated": "yesterday"}) == 0


def test_input_hash_is_kept_until_the_stamp_changes(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamps, "_TICK_NS", 0)
    path = tmp_path / "source.csv"
    path.write_text("url\nhttp://a/1.jpg\n")
    os.utime(path, ns=(10**18, 10**18))
    first = catalog.input_sha256(str(path))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1", b"2"))
    os.utime(path, ns=(10**18, 10**18))  # same size, same time: the time of the inode shows it
    second = catalog.input_sha256(str(path))
    assert second != first
    with monkeypatch.context() as patch:
        patch.setattr(records.storage, "hash_file", None)  # the file is not read
        assert catalog.input_sha256(str(path)) == second
    moved = tmp_path / "moved.csv"
    moved.write_bytes(content)
    moved.replace(path)
    assert catalog.input_sha256(str(path)) == first
    path.write_bytes(content + b"http://a/3.jpg\n")
    os.utime(path, ns=(10**18, 2 * 10**18))
    assert catalog.input_sha256(str(path)) not in (first, second)
    assert count(catalog, "inputs") == 1


# ---- mixes, releases, status


MIX_ROW = {
    "domain": "plant",
    "target_share": 0.75,
    "realised_share": 0.7,
    "num_available": 10,
    "num_drawn": 7,
    "num_epochs": 0.7,
    "num_heldout": 1,
}
SHARDS = [
    {"split": split, "shard": f"{split}.tar", "num_samples": num, "num_bytes": 1, "sha256": "00"}
    for split, num in (("train", 7), ("heldout", 1))
]


def test_what_settles_may_settle_again(catalog: Catalog) -> None:
    catalog.open_stage("mix", "m1", {})
    for _ in range(2):
        catalog.record_mix("m1", [MIX_ROW, {**MIX_ROW, "domain": "general"}])
        catalog.record_release("demo-1", "releases/demo-1", "k1", "ab", SHARDS)
        assert [count(catalog, table) for table in ("mixes", "releases", "shards")] == [2, 1, 2]
    assert catalog.find_release("k1") == "releases/demo-1"
    assert catalog.find_release("k2") is None
    assert catalog._connection.execute("SELECT num_samples FROM releases").fetchall() == [(7,)]


def test_status_is_readable_while_the_catalogue_is_held(catalog: Catalog) -> None:
    catalog.open_stage("ingest", "v1", {})
    catalog.commit_parts("v1", {0: part("p1", "a.parquet")})
    catalog.open_stage("mix", "m1", {})
    catalog.record_mix("m1", [MIX_ROW])
    catalog.seal_stage(StageRecord("mix", "m1", Funnel(3, 2, {"left_out_by_ratio": 1}), {"x": 1}))
    catalog.publish_status({"name": "demo", "running": None})
    status = read_status(catalog.workdir)
    assert status["stages"]["ingest"] == {
        "fingerprint": "v1",
        "sealed": False,
        "in": None,
        "kept": None,
        "notes": {},
        "reasons": {},
        "num_parts": 1,
    }
    assert status["stages"]["mix"]["reasons"] == {"left_out_by_ratio": 1}
    assert status["mix"] == [MIX_ROW]
    assert status["name"] == "demo"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT.*Z", status["updated_at"])


# ---- one writer


def test_every_table_and_column_is_described(catalog: Catalog) -> None:
    bare = catalog._connection.execute(
        "SELECT table_name FROM duckdb_tables() WHERE comment IS NULL UNION ALL "
        "SELECT table_name || '.' || column_name FROM duckdb_columns() WHERE NOT internal AND comment IS NULL"
    ).fetchall()
    assert bare == []
    described = set(re.findall(r"COMMENT ON (?:TABLE|COLUMN) (\S+)", SCHEMA.read_text(encoding="utf-8")))
    assert {"stages", "stages.sealed_at", "parts", "files.sha256"} <= described


def test_opening_again_keeps_what_is_there(tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        with Catalog.open(str(tmp_path)) as catalog:
            catalog.open_stage("ingest", version, {})
    with Catalog.open(str(tmp_path)) as catalog:
        assert count(catalog, "stages") == 2


def open_elsewhere(workdir: str) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys\nfrom manifests.contract.catalog import Catalog\nfrom manifests.errors import PlantMixError\n"
        "try:\n    Catalog.open(sys.argv[1])\nexcept PlantMixError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    return subprocess.run([sys.executable, "-c", script, workdir], capture_output=True, text=True, timeout=500)


def test_a_second_process_is_told_that_a_build_runs(catalog: Catalog) -> None:
    done = open_elsewhere(catalog.workdir)
    assert done.stdout.startswith("RunError "), done.stdout + done.stderr
    assert "another process is writing this catalogue" in done.stdout
    assert "commands that only read work meanwhile" in done.stdout


def test_a_reader_in_another_process_has_the_last_commit_and_is_told_of_when(catalog: Catalog) -> None:
    script = (
        "import logging, sys\nfrom manifests.contract.reader import is_of_copy, open_reader\nlogging.basicConfig()\n"
        "with open_reader(sys.argv[1]) as sql:\n"
        "    print(is_of_copy(sql, sys.argv[1]), sql.sql('SELECT fingerprint FROM stages').fetchall())\n"
    )
    catalog.open_stage("ingest", "v1", {})
    command = [sys.executable, "-c", script, catalog.workdir]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.stdout == "True [('v1',)]\n", done.stderr
    assert re.search(r"a build is writing here; the answer is as of its last commit, 20\d\d-.* UTC", done.stderr)
    catalog.open_stage("fetch", "v2", {})  # the writer goes on, and a reader never waits for it
    again = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert sorted(again.stdout.split("'")[1::2]) == ["v1", "v2"], again.stderr


def test_what_a_killed_driver_committed_is_there(tmp_path: Path) -> None:
    script = (
        "import signal, sys\nfrom manifests.contract.catalog import Catalog\ncatalog = Catalog.open(sys.argv[1])\n"
        "catalog.open_stage('ingest', 'v1', {})\n"
        "catalog._connection.execute('BEGIN')\n"
        "catalog._connection.execute(\"INSERT INTO current_stages VALUES ('fetch', 'torn')\")\n"
        "print('ready', flush=True)\nsignal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    with open_reader(str(tmp_path)) as connection:  # reads the write-ahead log of the dead driver
        assert connection.execute("SELECT stage, fingerprint FROM current_stages").fetchall() == [("ingest", "v1")]
    with Catalog.open(str(tmp_path)) as catalog:
        assert count(catalog, "stages") == 1
        assert count(catalog, "current_stages") == 1


@pytest.mark.parametrize("content", [b"", b"no database" * 1000])
def test_what_is_no_catalogue_is_not_taken_for_a_lock(tmp_path: Path, content: bytes) -> None:
    workdir = tmp_path / "blocks of a clock"  # the path stands in DuckDB's message
    workdir.mkdir()
    (workdir / CATALOG_FILE).write_bytes(content)
    with pytest.raises(IntegrityError, match="DuckDB cannot open it"):
        Catalog.open(str(workdir))
    with pytest.raises(IntegrityError, match="DuckDB cannot open it"):
        open_reader(str(workdir))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        Catalog.open(str(tmp_path / "file" / "work"))
