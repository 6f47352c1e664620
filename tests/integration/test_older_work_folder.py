"""A work folder that commit f9cb912 made goes on under the code of today, and no picture is asked for again.

tests/older/f9cb912.tar.xz holds it, with its configuration and what that names: 11 addresses (a near copy, a leak, one
that is no picture, one that is gone, one taken down) and a folder of 4 pictures; three releases.
"""

from __future__ import annotations

import random
import socketserver
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from damaging import contents, flip_bit

from manifests.contract.reader import open_reader
from pipeline.cli import main

ARCHIVE = Path(__file__).parents[1] / "older" / "f9cb912.tar.xz"
WEB = ("127.88.77.66", 18642)  # of the addresses in its list
DECIDED = {None: 10, "near_duplicate": 1, "eval_leak": 1, "takedown": 1, "http_404": 1, "not_an_image": 1}


def once_it_is_free(serve: Callable[[], socketserver.TCPServer]) -> socketserver.TCPServer:
    """A server at the address that the archive names; another run of the tests on this machine may hold it for now."""
    deadline = time.monotonic() + 1000
    while True:
        try:
            return serve()
        except OSError:
            assert time.monotonic() < deadline, f"{WEB} stays taken"
            time.sleep(0.1)


@pytest.fixture
def requests() -> Iterator[list[Any]]:
    """Who came to the addresses of the list: nobody must."""
    came: list[Any] = []

    class Refuses(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            came.append(self.client_address)

    with once_it_is_free(lambda: socketserver.ThreadingTCPServer(WEB, Refuses)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield came
        server.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    config = tmp_path / "old.yaml"
    config.write_text(config.read_text().replace("/tmp/plantmix-old", str(tmp_path)))
    return tmp_path


def rows(work: Path, query: str) -> list[Any]:
    with open_reader(str(work)) as connection:
        return list(connection.execute(query).fetchall())


def stored(work: Path) -> list[Any]:
    """Each sample, its hashes, and where the bytes of its download lie; a local picture may be read again."""
    columns = "sample_id, url, outcome, image_id, stored_sha256"
    place = """if(url IS NULL, NULL, (pool_file, "offset", length))"""
    return rows(work, f"SELECT {columns}, {place} FROM facts JOIN candidates USING (sample_id) ORDER BY 1")


@pytest.mark.slow
def test_an_older_folder_is_verified_repaired_built_and_taken_down_without_a_request(
    folder: Path, requests: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    work, config = folder / "work", "old.yaml"
    before = stored(work)
    pool = {name: (work / "pool" / name).read_bytes() for name in {row[-1][0] for row in before if row[-1]} - {None}}
    assert len(pool) == 1
    assert len(before) == 15
    assert main(["verify", "--deep", "work"]) == 0

    assert main(["build", config]) == 0
    assert dict(rows(work, "SELECT reason, count(*) FROM decisions GROUP BY 1")) == DECIDED
    assert stored(work) == before
    assert main(["build", config]) == 0
    for pattern in ("releases/*/shards/*000000.tar", "tables/dedup/pairs-*.parquet", "releases/*/samples.parquet"):
        damaged = max(work.glob(pattern), key=lambda path: path.stat().st_mtime_ns)
        sound = damaged.read_bytes()
        flip_bit(damaged, random.Random(1))
        assert main(["repair", "work"]) == 0
        assert damaged.read_bytes() == sound
    assert main(["takedown", "work", "--url", f"http://{WEB[0]}:{WEB[1]}/0.jpg", "--reason", "a test"]) == 0
    assert main(["build", config]) == 0
    decided = {**DECIDED, None: DECIDED[None] - 1, "takedown": 2}
    assert dict(rows(work, "SELECT reason, count(*) FROM decisions GROUP BY 1")) == decided
    assert stored(work) == before
    assert contents(work / "pool").items() >= pool.items()
    assert main(["verify", "--deep", "work"]) == 0
    assert requests == []


def test_a_damaged_file_of_an_older_release_is_made_again_or_it_is_said_why_not(
    folder: Path, requests: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    work = folder / "work"
    built, _, cut = sorted(work.glob("releases/*/release.json"), key=is_cut)
    for damaged in (built.parent / "samples.parquet", built.parent / "shards/old-000000.tar", cut.parent / "README.md"):
        sound = damaged.read_bytes()
        flip_bit(damaged, random.Random(1))
        assert main(["repair", str(work)]) == 1
        assert "another version of PlantMix" in capfd.readouterr().out
        damaged.write_bytes(sound)
    damaged_pool = max(work.glob("pool/*.tar"), key=lambda path: path.stat().st_size)
    sound = damaged_pool.read_bytes()
    flip_bit(damaged_pool, random.Random(1))
    assert main(["repair", str(work)]) == 0
    assert damaged_pool.read_bytes() == sound
    assert requests == []


def is_cut(record: Path) -> bool:
    return '"takedowns"' in record.read_text(encoding="utf-8")
