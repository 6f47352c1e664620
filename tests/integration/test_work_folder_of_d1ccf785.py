"""A work folder that commit d1ccf785 wrote goes on under the code of today, and no picture is asked for again.

tests/older/d1ccf785.tar.xz holds it, with its configuration and what that names: 14 addresses (a near copy, a leak, one
that is no picture, two that are gone, two taken down) and a folder of 4 pictures; six releases. Commit f9cb912 had
fetched 11 of the addresses, d1ccf785 the others.
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

from manifests.contract.catalog import Catalog
from manifests.contract.reader import open_reader
from pipeline.cli import main
from pipeline.engine.kept_config import last_config

ARCHIVE = Path(__file__).parents[1] / "older" / "d1ccf785.tar.xz"
WEB = ("127.88.77.66", 18642)  # of the addresses in its list
DECIDED = {None: 11, "near_duplicate": 1, "eval_leak": 1, "takedown": 2, "http_404": 2, "not_an_image": 1}


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
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    config = tmp_path / "old.yaml"
    config.write_text(config.read_text().replace("/tmp/plantmix-old", str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(query: str) -> list[Any]:
    with open_reader("work") as connection:
        return list(connection.execute(query).fetchall())


def stored() -> list[Any]:
    """Each sample, its hashes, and where its bytes lie."""
    columns = 'sample_id, url, outcome, image_id, stored_sha256, pool_file, "offset", length'
    return rows(f"SELECT {columns} FROM facts JOIN candidates USING (sample_id) ORDER BY 1")


def decided() -> dict[str | None, int]:
    return dict(rows("SELECT reason, count(*) FROM decisions GROUP BY 1"))


def test_its_pictures_are_neither_asked_for_nor_read_again(folder: Path, requests: list[Any]) -> None:
    before, pool = stored(), contents(folder / "work/pool")
    assert len(before) == 18
    assert main(["build", "old.yaml", "--to", "fetch"]) == 0
    assert stored() == before
    assert contents(folder / "work/pool") == pool
    with Catalog.open("work") as catalog:
        assert last_config(catalog).name == "old"
    assert requests == []


@pytest.mark.slow
def test_it_is_verified_built_and_taken_down_without_a_request(folder: Path, requests: list[Any]) -> None:
    before = stored()
    assert main(["verify", "--deep", "work"]) == 0
    assert main(["build", "old.yaml"]) == 0
    assert decided() == DECIDED
    assert main(["takedown", "work", "--url", f"http://{WEB[0]}:{WEB[1]}/0.jpg", "--reason", "a test"]) == 0
    assert main(["build", "old.yaml"]) == 0
    assert decided() == {**DECIDED, None: DECIDED[None] - 1, "takedown": DECIDED["takedown"] + 1}
    assert stored() == before
    assert main(["verify", "--deep", "work"]) == 0
    assert requests == []


def test_a_damaged_file_of_its_releases_is_told_and_its_pool_is_made_again(
    folder: Path, requests: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    records = sorted(folder.glob("work/releases/*/release.json"), key=lambda path: '"takedowns"' in path.read_text())
    built, cut = records[0].parent, records[-1].parent
    for damaged in (built / "samples.parquet", built / "shards/old-000000.tar", cut / "README.md"):
        sound = damaged.read_bytes()
        flip_bit(damaged, random.Random(1))
        assert main(["repair", "work"]) == 1
        assert "another version of PlantMix" in capfd.readouterr().out
        damaged.write_bytes(sound)
    damaged = max(folder.glob("work/pool/*.tar"), key=lambda path: path.stat().st_size)
    sound = damaged.read_bytes()
    flip_bit(damaged, random.Random(1))
    assert main(["repair", "work"]) == 0
    assert damaged.read_bytes() == sound
    assert requests == []
