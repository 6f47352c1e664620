"""A work folder of 0.4.0 goes on under the code of today without a request; one of 0.3.0 is refused and left as it is.

tests/older/0.4.0.tar.xz is what commit 39107260 wrote: a configuration, and what it names. A list of 13 addresses (a
copy, a leak, one taken down, one opted out, one that robots.txt forbids, one that is no picture, one that is gone), a
folder of 3 pictures and an evaluation set of one; two releases. tests/older/0.3.0.tar.xz is what commit d1ccf785 built
of a folder of two pictures.
"""

from __future__ import annotations

import random
import socketserver
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from building import run_here
from damaging import contents, flip_bit
from waiting import wait_until

from manifests.contract.catalog import Catalog
from manifests.contract.reader import open_reader
from pipeline.cli import main
from pipeline.engine.kept_config import last_config

ARCHIVES = Path(__file__).parents[1] / "older"
WEB = ("127.88.77.66", 18642)  # of the addresses in its list
DECIDED = {
    None: 9,
    "near_duplicate": 1,
    "eval_leak": 1,
    "takedown": 1,
    "http_404": 1,
    "not_an_image": 1,
    "opted_out": 1,
    "robots_disallowed": 1,
}


@pytest.fixture
def requests() -> Iterator[list[Any]]:
    """Who came to the addresses of the list: nobody must."""
    came: list[Any] = []

    class Refuses(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            came.append(self.client_address)

    servers: list[socketserver.TCPServer] = []

    def is_served() -> bool:  # another run of the tests on this machine may hold the address for now
        try:
            servers.append(socketserver.ThreadingTCPServer(WEB, Refuses))
        except OSError:
            return False
        return True

    wait_until(is_served)
    with servers[0] as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield came
        server.shutdown()


def unpack(version: str, folder: Path) -> Path:
    with tarfile.open(ARCHIVES / f"{version}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    config = folder / "old.yaml"
    config.write_text(config.read_text().replace(f"/tmp/plantmix-{version[:3]}", str(folder)))
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(unpack("0.4.0", tmp_path))
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


def test_it_is_built_without_a_request(folder: Path, requests: list[Any]) -> None:
    before, pool = stored(), contents(folder / "work/pool")
    assert len(before) == 16
    assert decided() == DECIDED
    assert main(["build", "old.yaml"]) == 0
    assert stored() == before
    assert contents(folder / "work/pool") == pool
    assert decided() == DECIDED
    with Catalog.open("work") as catalog:
        assert last_config(catalog).name == "old"
    assert requests == []


@pytest.mark.slow
def test_it_is_verified_repaired_and_taken_down_without_a_request(folder: Path, requests: list[Any]) -> None:
    before = stored()
    assert main(["verify", "--deep", "work"]) == 0
    damaged = max(folder.glob("work/pool/*.tar"), key=lambda path: path.stat().st_size)
    sound = damaged.read_bytes()
    flip_bit(damaged, random.Random(1))
    assert main(["repair", "work"]) == 0
    assert damaged.read_bytes() == sound
    assert main(["takedown", "work", "--url", f"http://{WEB[0]}:{WEB[1]}/0.jpg", "--reason", "a test"]) == 0
    assert main(["build", "old.yaml"]) == 0
    assert decided() == {**DECIDED, None: DECIDED[None] - 1, "takedown": DECIDED["takedown"] + 1}
    assert stored() == before
    assert main(["verify", "--deep", "work"]) == 0
    assert requests == []


@pytest.mark.parametrize(
    "command",
    [
        ["build", "old.yaml"], ["retry", "work"], ["takedown", "work", "--url", "http://a.example/b", "--reason", "a"],
        ["verify", "work"], ["repair", "work"], ["query", "work", "FROM stages"], ["report", "work"],
        ["explain", "work", "a"],
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_an_older_one_is_refused_in_one_line_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        paths = sorted((tmp_path / "work").rglob("*"))
        return {str(path): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in paths}

    monkeypatch.chdir(unpack("0.3.0", tmp_path))
    before = state()
    ended = run_here(*command)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = [line for line in ended.stderr.splitlines() if "checking" not in line]
    assert "PlantMix before 0.4.0 built here" in line
    assert "PlantMix 0.4.0 (commit 39107260) goes on with this folder" in line
    assert state() == before


def test_an_older_one_is_not_made_again_from_its_snapshot(tmp_path: Path) -> None:
    work = unpack("0.3.0", tmp_path) / "work"
    (work / "catalog.duckdb").unlink()
    before = contents(work)
    ended = run_here("repair", work)
    assert (ended.returncode, "PlantMix before 0.4.0" in ended.stderr) == (2, True)
    assert contents(work) == before
