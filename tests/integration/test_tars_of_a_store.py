"""Tars of a store are read once, front to back, whatever the web does; a build that was stopped goes on there."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from building import done, run_here
from foreign_tars import img2dataset_samples, write_tar
from ingested import NUM, build, config_of, rows_of, tar_of, versions
from misbehaving.hub import Repository, StoredFile, fake_hub, use_hub
from misbehaving.object_store import BUCKET, become_user, serving
from range_server import RangeServer, serving_ranges
from waiting import wait_until

from manifests.contract.catalog import Catalog
from manifests.contract.reader import open_reader
from pipeline.sources.tars import front_to_back
from pipeline.stages.ingest import tars as ingest_tars

HEAD = 16 << 10  # bytes that `check` asks for, at most


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manifests.stores.faults.WAITS_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(front_to_back, "RANGE_BYTES", 16 << 10)
    monkeypatch.setattr(ingest_tars, "PIECE_BYTES", 20 << 10)


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with serving_ranges() as served:
        yield served


def ranges(server: RangeServer, name: str = "0.tar") -> list[int]:
    """Where the reading of a tar asked for bytes; `check` asks at 0 too."""
    return sorted(start for asked, start, _ in server.asked if asked == name and start)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What the same tar gives as a file of this machine."""
    folder = tmp_path_factory.mktemp("here")
    write_tar(folder / "0.tar", img2dataset_samples(0, NUM))
    build(config_of(folder, str(folder / "0.tar")))
    return rows_of(folder / "work")


def test_a_tar_is_read_once_and_gives_what_it_gives_here(
    server: RangeServer, tmp_path: Path, here: dict[str, list[Any]]
) -> None:
    content = tar_of(tmp_path)
    server.put("0.tar", content)
    config = config_of(tmp_path, f"{server.address}/0.tar")
    build(config)
    assert rows_of(tmp_path / "work") == here
    assert len(here) == NUM
    assert ranges(server) == list(range(16 << 10, len(content), 16 << 10)), "each byte once"
    server.asked.clear()
    assert "ingest: reused" in build(config)
    assert ranges(server) == []


def test_a_table_that_is_joined_to_it_and_another_where_read_no_tar_again(server: RangeServer, tmp_path: Path) -> None:
    server.put("0.tar", tar_of(tmp_path))
    path, table = f"{server.address}/0.tar", tmp_path / "ranks.csv"

    def config(where: dict[str, Any], *genera: str) -> Path:
        keys = [f"0/{n:09d},{genera[n % len(genera)]}" for n in range(NUM)]
        table.write_text("\n".join(["key,genus", *keys]) + "\n")
        join = {"table": str(table), "on": {"record_key": "key"}, "columns": {"taxon_genus": "genus"}}
        return config_of(tmp_path, path, more={"join": [join], "where": where})

    first = config({"genus": ["Poa"]}, "Poa", "Rosa")
    said = run_here("estimate", first).stdout
    assert f"{NUM}        {NUM // 2}  {NUM // 2} where_genus" in said
    assert "join 1 of theirs: 0 of 24 pictures (0.0%) have no partner" in said
    build(first)
    assert len(rows_of(tmp_path / "work")) == NUM // 2
    server.asked.clear()
    build(config({"genus": {"not": ["Poa"]}}, "Poa", "Rosa", "Malus"))
    assert ranges(server) == []
    rows = rows_of(tmp_path / "work")
    assert len(rows) == 2 * NUM // 3
    assert {outcome for _, _, _, outcome, *_ in rows.values()} == {"ok"}


@pytest.mark.parametrize(
    "fault", ["short", 503, *(pytest.param(it, marks=pytest.mark.slow) for it in ("reset", "slow"))]
)
def test_faults_that_pass_cost_a_request_and_no_sample(fault: Any, server: RangeServer, tmp_path: Path) -> None:
    content = tar_of(tmp_path)
    server.put("0.tar", content)
    failed: list[int] = []

    def choose(name: str, start: int) -> Any:
        if name == "0.tar" and start >= 32 << 10 and len(failed) < 3:
            failed.append(start)
            return fault
        return None

    server.choose = choose
    build(config_of(tmp_path, f"{server.address}/0.tar"), last="ingest")
    assert len(failed) == 3
    with open_reader(str(tmp_path / "work")) as sql:
        assert sql.execute("SELECT count(*) FROM candidates").fetchall() == [(NUM,)]


@pytest.mark.parametrize("path", ["0.tar", "{0..1}.tar"])
def test_a_busy_web_server_lacks_no_tar(
    path: str, server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers 503 to whatever is asked, to a HEAD too."""
    server.put("0.tar", tar_of(tmp_path))
    server.put("1.tar", tar_of(tmp_path, NUM, NUM + 4))
    server.fails_heads, refusals = True, [503, 503]
    server.choose = lambda name, start: refusals.pop() if refusals else None
    config = config_of(tmp_path, f"{server.address}/{path}")
    build(config, last="ingest")
    assert not refusals
    server.choose = lambda name, start: 503
    assert "the store cannot be used now (ClientResponseError: 503" in (told := build(config, 1, "ingest"))
    assert f"{server.address}/0.tar" in told
    assert "no .tar file" not in told
    assert "missing" not in told
    server.choose, server.fails_heads = lambda name, start: None, False
    gone = config_of(tmp_path, f"{server.address}/{{1..2}}.tar")
    assert f"1 of 2 files are missing, the first is {server.address}/2.tar" in build(gone, 2)


def test_an_empty_tar_of_a_web_server_is_named_as_one_of_this_machine(server: RangeServer, tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"\0" * 1024)):
        (tmp_path / f"{number}.tar").write_bytes(content)
        server.put(f"{number}.tar", content)
        told = [
            build(config_of(tmp_path, f"{root}/{number}.tar"), 1, "ingest").partition("\n")[2].replace(root, "")
            for root in (str(tmp_path), server.address)
        ]
        assert told[0] == told[1]
        assert "none of" in told[0]


def test_a_server_that_stays_away_costs_no_piece_that_is_committed(
    server: RangeServer, tmp_path: Path, here: dict[str, list[Any]]
) -> None:
    content = tar_of(tmp_path)
    server.put("0.tar", content)
    server.choose = lambda name, start: 503 if start >= 64 << 10 else None
    config = config_of(tmp_path, f"{server.address}/0.tar")
    assert "0.tar cannot be read now" in build(config, 1)
    with Catalog.open(str(tmp_path / "work")) as catalog:
        committed = max(piece.notes["stop"] for piece in catalog.parts_like("ingest", "tars"))
    assert committed >= 40 << 10
    server.choose = lambda name, start: None
    server.asked.clear()
    build(config)
    assert min(ranges(server)) == committed
    assert rows_of(tmp_path / "work") == here


def test_another_version_of_the_same_content_runs_nothing_again(server: RangeServer, tmp_path: Path) -> None:
    content = tar_of(tmp_path)
    server.put("0.tar", content)
    config = config_of(tmp_path, f"{server.address}/0.tar")
    build(config)
    before = versions(tmp_path / "work")
    num_pool = len(list((tmp_path / "work/pool").iterdir()))
    server.put("0.tar", content, etag="uploaded-again")
    server.asked.clear()
    said = build(config)
    assert "ingest: reused" in said
    assert "fetch: reused" in said
    assert len(ranges(server)) == len(content) // (16 << 10), "read once to know it"
    assert versions(tmp_path / "work") == before
    server.asked.clear()
    build(config)
    assert ranges(server) == []
    other = tmp_path / "other"
    other.mkdir()
    build(config_of(other, f"{server.address}/0.tar"))
    assert versions(other / "work") == before, "no fingerprint saw an ETag or a place"
    assert num_pool <= len(list((tmp_path / "work/pool").iterdir()))


def test_a_tar_that_changes_is_named_and_then_read_anew(server: RangeServer, tmp_path: Path) -> None:
    server.put("0.tar", tar_of(tmp_path))

    def choose(name: str, start: int) -> None:
        if start == 64 << 10:
            server.put("0.tar", tar_of(tmp_path, 100, 100 + NUM))

    server.choose = choose
    config = config_of(tmp_path, f"{server.address}/0.tar")
    assert "0.tar: was changed while it was read" in build(config, 1)
    server.choose = lambda name, start: None
    build(config)
    assert sorted(rows_of(tmp_path / "work")) == [f"0/{number:09d}" for number in range(100, 100 + NUM)]


def test_a_tar_that_breaks_off_is_named(server: RangeServer, tmp_path: Path) -> None:
    server.put("0.tar", tar_of(tmp_path)[: 50 << 10])
    config = config_of(tmp_path, f"{server.address}/0.tar")
    build(config)
    with open_reader(str(tmp_path / "work")) as sql:
        ((value,),) = sql.execute("SELECT value FROM rejects WHERE reason = 'broken_shard'").fetchall()
    assert value.startswith("0.tar: the member at byte ")
    assert 8 < len(rows_of(tmp_path / "work")) < NUM


def test_an_empty_tar_is_a_broken_one(server: RangeServer, tmp_path: Path) -> None:
    server.put("0.tar", b"")
    server.put("1.tar", tar_of(tmp_path, 0, 3))
    config = config_of(tmp_path, f"{server.address}/{{0..1}}.tar")
    done("estimate", config)
    build(config)
    assert len(rows_of(tmp_path / "work")) == 3
    with open_reader(str(tmp_path / "work")) as sql:
        ((value,),) = sql.execute("SELECT value FROM rejects WHERE reason = 'broken_shard'").fetchall()
    assert value.startswith("0.tar: no tar member and no end mark at byte 0")


def test_a_server_without_ranges_is_named(server: RangeServer, tmp_path: Path) -> None:
    server.put("0.tar", tar_of(tmp_path))
    server.choose = lambda name, start: "whole"
    config = config_of(tmp_path, f"{server.address}/0.tar")
    assert "sends files whole, not in ranges" in build(config, 2)


@pytest.mark.slow
def test_a_bucket_gives_its_tars(tmp_path: Path, here: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as store:
        become_user(store, monkeypatch)
        s3 = fsspec.filesystem("s3", **store.options)
        content = tar_of(tmp_path)
        s3.pipe_file(f"{BUCKET}/theirs/0.tar", content)
        build(config_of(tmp_path, f"s3://{BUCKET}/theirs", executor="processes", num_workers=2))
        assert rows_of(tmp_path / "work") == here
        tars = [num for path, num in store.sent if path.partition("?")[0].endswith("/0.tar")]
        assert sum(tars) == 3 * len(content), "the heads that two checks ask for, then once"


def test_the_hub_gives_its_tars(tmp_path: Path, here: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    content = tar_of(tmp_path)
    with fake_hub() as hub:
        use_hub(hub, monkeypatch)
        fsspec.get_filesystem_class("hf").clear_instance_cache()
        sha256 = hashlib.sha256(content).hexdigest()
        stored = StoredFile(sha256, len(content), content, True)
        hub.repositories["datasets/lab/theirs"] = Repository(False, {"0.tar": stored}, [["0.tar"]])
        config = config_of(tmp_path, "hf://datasets/lab/theirs/0.tar")
        build(config)
        assert rows_of(tmp_path / "work") == here
        asked = len(hub.log)
        assert "ingest: reused" in build(config)
        assert not [line for line in hub.log[asked:] if line.startswith("GET") and "/resolve/" in line][2:]


SMALL = """
import sys
from pipeline.cli import main
from pipeline.sources.tars import front_to_back
from pipeline.stages.ingest import tars as ingest_tars
front_to_back.RANGE_BYTES, ingest_tars.PIECE_BYTES = 16 << 10, 20 << 10
main(sys.argv[1:])
"""


def test_a_killed_build_reads_nothing_again(server: RangeServer, tmp_path: Path, here: dict[str, list[Any]]) -> None:
    server.put("0.tar", tar_of(tmp_path))
    config = config_of(tmp_path, f"{server.address}/0.tar")
    killed = threading.Event()
    server.choose = lambda name, start: killed.wait(600) and None if start >= 80 << 10 else None
    process = subprocess.Popen([sys.executable, "-c", SMALL, "build", str(config), "--to", "fetch"])
    # when the second is there, the first is committed
    wait_until(lambda: len(list((tmp_path / "work/tables/ingest").glob("samples-*.parquet"))) >= 2, process)
    process.kill()
    process.wait()
    killed.set()
    server.asked.clear()
    build(config)
    assert min(ranges(server)) >= 20 << 10
    assert rows_of(tmp_path / "work") == here


def test_an_estimate_reads_the_first_samples_alone(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sources.webdataset.HEAD_ROWS", 6)
    content = tar_of(tmp_path)
    server.put("0.tar", content)
    server.put("1.tar", content)
    config = config_of(tmp_path, f"{server.address}/{{0..1}}.tar")
    done = run_here("estimate", config)
    assert done.returncode == 0, done.stderr
    num = int(re.search(r"^(\d+) pictures of .* lie in 2 files of 184 kB in a store", done.stdout, re.M)[1])
    assert 0.8 < num / (2 * NUM) < 1.2
    assert "read once in 14 requests" in done.stdout


def test_a_token_in_an_address_gets_into_no_name(server: RangeServer, tmp_path: Path) -> None:
    """Names of tars are a part of record keys, which releases publish."""
    server.put("0.tar", tar_of(tmp_path))
    said = build(config_of(tmp_path, f"{server.address}/0.tar?token=s3cr3tt0k3n"), status=2)
    assert "an address without a query" in said
    assert "s3cr3tt0k3n" not in said
    assert not server.asked
