"""Files written to `s3://`: one request each, the whole file whenever it is tried again, as slowly as the line is."""

from __future__ import annotations

import http.server
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from misbehaving.object_store import BUCKET, Store, become_user, serving
from waiting import be_slow

from manifests.errors import RetryableError
from manifests.stores import storage

MIB = 1 << 20


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with serving() as found:
        yield found


@pytest.fixture(autouse=True)
def user(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    become_user(store, monkeypatch)


def made(tmp_path: Path, num_mib: int) -> str:
    local = tmp_path / "local"
    local.write_bytes(random.Random(1).randbytes(MIB) * num_mib)
    return str(local)


def methods(store: Store) -> Counter[str]:
    return Counter(method for method, _ in store.requests)


def assert_stored(local: str, place: str) -> None:
    assert storage.hash_file(place).sha256 == storage.hash_file(local).sha256


@pytest.mark.slow
def test_a_large_file_is_one_request(store: Store, tmp_path: Path) -> None:
    """As it was: in pieces of 50 MB above 100 MB."""
    local, place = made(tmp_path, 120), f"s3://{BUCKET}/large"
    storage.upload(local, place)
    assert methods(store) == {"PUT": 1}
    assert_stored(local, place)


def test_what_one_request_cannot_hold_goes_in_parts(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manifests.stores.clients._S3_PUT_BYTES", 100 * MIB)
    local, place = made(tmp_path, 120), f"s3://{BUCKET}/parts"
    storage.upload(local, place)
    assert methods(store) == {"POST": 2, "PUT": 3}
    assert_stored(local, place)


@pytest.mark.parametrize("fault", ["reset", pytest.param("slow_down", marks=pytest.mark.slow)])
def test_an_upload_that_is_tried_again_sends_the_whole_file(
    store: Store, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    local, place = made(tmp_path, 1), f"s3://{BUCKET}/again/{fault}"
    faults = iter([fault, fault])
    store.choose = lambda method, path: next(faults, None) if method == "PUT" else None
    storage.upload(local, place)
    assert methods(store) == {"PUT": 3}
    assert_stored(local, place)


def test_a_store_that_refuses_leaves_what_was_there(store: Store, tmp_path: Path) -> None:
    local, place = made(tmp_path, 1), f"s3://{BUCKET}/refused"
    storage.publish_bytes(place, b"before")
    store.choose = lambda method, path: "expired" if method == "PUT" else None
    with pytest.raises(RetryableError, match=r"refused cannot be written now \(PermissionError: The provided token"):
        storage.upload(local, place)
    assert b"".join(storage.read_chunks(place)) == b"before"


def test_a_page_is_stored_as_one_and_with_what_the_user_has_set(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", {"s3_additional_kwargs": {"StorageClass": "STANDARD_IA"}})
    storage.upload(made(tmp_path, 1), f"s3://{BUCKET}/report.html")
    found = fsspec.filesystem("s3", **store.options).call_s3("head_object", Bucket=BUCKET, Key="report.html")
    assert (found["ContentType"], found["StorageClass"]) == ("text/html", "STANDARD_IA")


class _SlowStore(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    got = 0

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_PUT(self) -> None:
        self.send_response_only(100)
        self.end_headers()
        num_bytes = int(self.headers["Content-Length"])
        while type(self).got < num_bytes:
            type(self).got += len(self.rfile.read(min(4 * MIB, num_bytes - type(self).got)))
            be_slow(0.5)
        self.send_response(200)
        self.send_header("ETag", '"hash"')
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.mark.slow
def test_an_upload_may_take_longer_than_an_answer_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system still holds of it when all is sent counts as waiting for the answer, so that is kept small."""
    answer_seconds = 10
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _SlowStore, bind_and_activate=False)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB // 4)
    server.server_bind()
    server.server_activate()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {"read_timeout": answer_seconds, "retries": {"max_attempts": 0}}
    endpoint = {"endpoint_url": f"http://127.0.0.1:{server.server_address[1]}"}
    monkeypatch.setitem(fsspec.config.conf, "s3", {"client_kwargs": endpoint, "config_kwargs": settings})
    local = made(tmp_path, 96)
    began = time.monotonic()
    storage.upload(local, f"s3://{BUCKET}/slow")
    server.shutdown()
    server.server_close()
    assert time.monotonic() - began > answer_seconds
    assert _SlowStore.got == 96 * MIB
