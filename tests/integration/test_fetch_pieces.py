"""A part in pieces: as time goes by, when it is asked to stop, and when a try fails between two pieces."""

from __future__ import annotations

import itertools
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fetched import fetch_rows
from misbehaving.answers import encode, send_picture
from misbehaving.server import MisbehavingServer
from PIL import Image
from running import execution_of
from waiting import be_slow, wait_until

from manifests.errors import RetryableError
from manifests.stores import storage
from pipeline.engine.executing import Done, Job, do_job
from pipeline.engine.work import Part, PartResult
from pipeline.fetching import engine
from pipeline.fetching.engine import Piece, fetch_in_pieces
from pipeline.fetching.hosts import HostGate
from pipeline.fetching.part import PartWriter
from pipeline.fetching.pictures.settings import ImageSettings
from pipeline.fetching.settings import FetchSettings, NetworkSettings
from pipeline.stages.fetch import stage as fetch
from pipeline.stages.fetch.rounds import PicturesInputs
from pipeline.store.files import RowGroup

NETWORK = NetworkSettings.model_validate(
    {
        "threads": 4,
        "robots_txt": False,
        "consent_signals": (),
        "retries": 0,
        "allow_private_addresses": True,
        "limits": {"requests_per_second": 40, "connections": 4},
    }
)
SETTINGS = FetchSettings(network=NETWORK)


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    over = threading.Event()
    body = encode(Image.new("RGB", (48, 48), (9, 99, 9)))

    def quick(sock: Any, request: Any) -> None:
        send_picture(sock, body)

    def slow(sock: Any, request: Any) -> None:
        be_slow(0.8)
        send_picture(sock, body)

    def silent(sock: Any, request: Any) -> None:
        over.wait(600)

    with MisbehavingServer(extra={"quick": quick, "slow": slow, "silent": silent}) as made:
        yield made
        over.set()


def rows_of(server: MisbehavingServer, kind: str, num: int) -> list[tuple[str, str]]:
    return [(f"{n:032x}", f"http://127.0.0.1:{server.port}/{kind}/{n}") for n in range(num)]


def stop_after(gate: HostGate, server: MisbehavingServer, num: int) -> None:
    """Ask the part to stop once the server was asked `num` times."""

    def watch() -> None:
        wait_until(lambda: len(server.log) >= num)
        gate.request_stop()

    threading.Thread(target=watch, daemon=True).start()


def pictures_of(piece: Piece) -> list[str]:
    with tarfile.open(piece.pool_path) as tar:
        return [name.removesuffix(".jpg") for name in tar.getnames()]


def files_in(folder: Path) -> Iterator[str]:
    number = 0
    while True:
        yield str(folder / f"{number}.tar")
        number += 1


def test_pieces_come_as_time_goes_by_and_hold_every_row_once(tmp_path: Path, server: MisbehavingServer) -> None:
    rows, names = rows_of(server, "quick", 60), files_in(tmp_path)
    pieces = list(fetch_in_pieces(rows, SETTINGS, HostGate(NETWORK), lambda: next(names), piece_seconds=0.3))
    assert len(pieces) >= 2
    assert not any(piece.is_whole for piece in pieces)
    ids = [piece.facts["sample_id"].to_pylist() for piece in pieces]
    assert all(each == sorted(each) for each in ids)
    assert sorted(itertools.chain.from_iterable(ids)) == [sample_id for sample_id, _ in rows]
    assert [pictures_of(piece) for piece in pieces] == ids
    assert len(server.log) == 60
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {Path(piece.pool_path).name for piece in pieces}


def test_a_part_that_stops_stores_what_it_has_and_lets_requests_end(tmp_path: Path, server: MisbehavingServer) -> None:
    rows, names, gate = rows_of(server, "slow", 40), files_in(tmp_path), HostGate(NETWORK)
    stop_after(gate, server, 8)
    (piece,) = fetch_in_pieces(rows, SETTINGS, gate, lambda: next(names), part="a")
    assert set(piece.facts["outcome"].to_pylist()) == {"ok"}
    assert 4 <= piece.facts.num_rows == len(server.log) < 40, "every request that was sent has brought its picture"
    assert gate.progress().num_rows == piece.facts.num_rows
    assert list(fetch_in_pieces(rows, SETTINGS, gate, lambda: next(names), part="b")) == []
    assert [path.name for path in tmp_path.iterdir()] == [Path(piece.pool_path).name]


@pytest.mark.slow
def test_a_host_that_does_not_answer_delays_no_stop(tmp_path: Path, server: MisbehavingServer) -> None:
    rows = [*rows_of(server, "quick", 3), ("f" * 32, f"http://localhost:{server.port}/silent/1")]
    gate, names = HostGate(NETWORK), files_in(tmp_path)
    stop_after(gate, server, 4)
    (piece,) = fetch_in_pieces(rows, SETTINGS, gate, lambda: next(names))
    assert sum(server.open_now.values()) == 1, "the silent answer is still to come"
    assert piece.facts["sample_id"].to_pylist() == [sample_id for sample_id, _ in rows[:3]]


def test_a_part_that_fails_hands_its_places_at_hosts_back(
    tmp_path: Path, server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(self: PartWriter, *_: Any) -> None:
        raise OSError(28, "No space left on device")

    gate = HostGate(NETWORK, clock=lambda: time.monotonic() / 8)
    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "add", no_room)
        with pytest.raises(OSError, match="No space left"):
            fetch_rows(rows_of(server, "slow", 12), SETTINGS, gate, tmp_path / "p.tar")
    assert list(tmp_path.iterdir()) == []
    began = time.monotonic()
    table = fetch_rows(rows_of(server, "quick", 8), SETTINGS, gate, tmp_path / "q.tar")
    assert time.monotonic() - began < 600, "it must not wait until the leases end by themselves, in 720 s of this clock"
    assert table["outcome"].to_pylist() == ["ok"] * 8


def test_another_try_asks_only_for_what_no_piece_holds(
    tmp_path: Path, server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(server, "quick", 30)
    urls = [row[1] for row in rows]
    ids = [[row[0]] for row in rows]
    table = pa.table({"sample_ids": ids, "url": urls, "address": urls, "asks": ["picture"] * 30, "way": [[]] * 30})
    pq.write_table(table, tmp_path / "todo.parquet")
    inputs = PicturesInputs(RowGroup(str(tmp_path / "todo.parquet"), 0, "x"), ImageSettings(), (), 0)
    how = fetch.DownloadHow(SETTINGS, 0.2)
    execution = replace(execution_of(fetch.STAGE, "download", tmp_path, stem="stem", how=how), shared=HostGate(NETWORK))
    job = Job("k", Part(inputs), execution)

    def failing_after_one(*arguments: Any, **options: Any) -> Iterator[Piece]:
        yield next(fetch_in_pieces(*arguments, **options))
        raise RetryableError("the gate is gone")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "fetch_in_pieces", failing_after_one)
        first, failed = do_job(fetch.download, job)
    assert isinstance(failed.error, RetryableError)
    assert first.result is not None
    for file in first.result.files:
        storage.publish(file.temp, str(tmp_path / file.path))
    (before,) = (str(tmp_path / file.path) for file in first.result.files if file.table == "fetched")
    again = replace(execution, shared=HostGate(NETWORK), pieces=(before,))
    results = [first.result, *(results_of(done) for done in do_job(fetch.download, Job("k", job.part, again)))]
    assert all(result.is_piece for result in results)
    paths = [file.path for result in results for file in result.files]
    assert len(set(paths)) == len(paths)
    ids = pq.read_table(before)["sample_id"].to_pylist()
    for result in results[1:]:
        ids += pq.ParquetFile(result.files[1].temp).read()["sample_id"].to_pylist()
    assert sorted(ids) == [row[0] for row in rows]


def results_of(done: Done) -> PartResult:
    assert done.result is not None, done.error
    return done.result
