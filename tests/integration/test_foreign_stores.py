"""Shards that PlantMix did not build, in stores: a web server with ranges and one without, and a real S3 server."""

from __future__ import annotations

import functools
import hashlib
import http.server
import itertools
import os
import re
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from foreign_tars import img2dataset_samples, write_tar
from misbehaving.hub import Repository, StoredFile, fake_hub, use_hub
from misbehaving.object_store import BUCKET, Store, become_user, serving

from manifests.errors import ConfigError, IntegrityError, RetryableError
from manifests.stores import storage
from manifests.stores.web import WebFiles
from training.data import foreign, loader, shard_index
from training.data.settings import DataSettings
from training.data.shards import SamplePool, ShardReader, open_pool
from training.using.pictures import list_pictures


class PlainHandler(http.server.SimpleHTTPRequestHandler):
    """Files whole, whatever range is asked for."""

    protocol_version = "HTTP/1.1"
    asked: list[tuple[str, str, str]]

    def log_message(self, format: str, *values: Any) -> None:
        self.asked.append((self.command, self.path, self.headers.get("Range", "")))


class RangeHandler(PlainHandler):
    """Parts of files, as web servers give them."""

    def do_GET(self) -> None:
        parts = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if parts is None:
            super().do_GET()
            return
        content = Path(self.translate_path(self.path)).read_bytes()
        piece = content[int(parts[1]) : int(parts[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(piece)))
        self.send_header("Content-Range", f"bytes {parts[1]}-{int(parts[1]) + len(piece) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(piece)


@pytest.fixture(params=[RangeHandler, PlainHandler])
def web(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path, type[PlainHandler]]]:
    (tmp_path / "www").mkdir()
    handler = type("Handler", (request.param,), {"asked": []})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(tmp_path / "www"))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", tmp_path / "www", handler
    server.shutdown()
    server.server_close()
    thread.join()
    WebFiles.clear_instance_cache()


def opened(data: DataSettings) -> SamplePool:
    return open_pool(loader.open_sources(None, data, "train"), "train")


def contents(pool: SamplePool, data: DataSettings) -> list[tuple[bytes, bytes]]:
    read = ShardReader(pool, data.cache).read(range(len(pool)), with_texts=False)
    return [(image, text) for image, text, _ in read]


def of_samples(stop: int) -> list[tuple[bytes, bytes]]:
    return [(members["jpg"], members["txt"]) for _, members in img2dataset_samples(0, stop)]


def test_a_web_server_gives_the_samples(
    web: tuple[str, Path, type[PlainHandler]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder, handler = web
    monkeypatch.setattr(shard_index, "_CHUNK_BYTES", 20_000)
    for number in range(2):
        write_tar(folder / f"{number:05d}.tar", img2dataset_samples(20 * number, 20 * number + 20))
    shards = f"{address}/{{00000..00001}}.tar?token=hunter2"
    data = DataSettings(shards=shards, cache_dir=str(tmp_path / "cache"), batch_size=2)
    pool = opened(data)
    assert contents(pool, data) == of_samples(40)
    assert "hunter2" not in " ".join([*pool.paths, *(file.path for file in pool.files)])
    handler.asked.clear()
    again = opened(data)
    assert contents(again, data) == of_samples(40)
    assert [method for method, _, _ in handler.asked] == ["HEAD", "HEAD"]  # index and shards are kept
    small = DataSettings(shards=shards, cache_dir=str(tmp_path / "cache"), cache_gb=1e-4)
    if issubclass(handler, RangeHandler):  # a shard above the cache's bound is read in parts
        assert contents(opened(small), small) == of_samples(40)
    listing = list_pictures([f"{address}/{{00000..00001}}.tar"])
    assert [listing.read(row) for row in (0, 39)] == [of_samples(40)[row][0] for row in (0, 39)]
    with pytest.raises(ConfigError, match=r"/2.tar: no such shard"):
        opened(DataSettings(shards=f"{address}/2.tar", cache_dir=str(tmp_path / "cache")))


@pytest.fixture(scope="module")
def served() -> Iterator[Store]:
    with serving() as store:
        yield store


def test_a_real_object_store_gives_the_samples_and_a_changed_shard_is_named(
    served: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    become_user(served, monkeypatch)
    monkeypatch.setattr("manifests.stores.faults.WAITS_SECONDS", (0.01,))
    path = write_tar(tmp_path / "0.tar", img2dataset_samples(0, 20))
    s3 = fsspec.filesystem("s3", **served.options)
    s3.put(str(path), f"{BUCKET}/others/0.tar")
    s3.put(str(write_tar(tmp_path / "1.tar", img2dataset_samples(20, 30))), f"{BUCKET}/others/deep/1.tar")
    for place in (f"s3://{BUCKET}/others", f"s3://{BUCKET}/others/**/*.tar"):
        data = DataSettings(shards=place, cache_dir=str(tmp_path / "cache"))
        pool = opened(data)
        assert contents(pool, data) == of_samples(30)
    here = DataSettings(shards=str(tmp_path / "{0..1}.tar"), cache_dir=str(tmp_path / "cache"))
    assert opened(here).fingerprints == pool.fingerprints
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    s3.pipe(f"{BUCKET}/others/0.tar", bytes(content))
    other = DataSettings(shards=data.shards, cache_dir=str(tmp_path / "other"))
    with pytest.raises(IntegrityError, match=r"s3://bucket/others/0.tar has other content than when it was indexed"):
        contents(pool, other)
    s3.invalidate_cache()
    assert opened(data).fingerprints != pool.fingerprints
    assert "s3://bucket/others/0.tar: changed since it was indexed" in capfd.readouterr().err


def test_the_hub_gives_the_samples_and_lists_a_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    repository = Repository(private=True)

    def put(name: str, start: int, stop: int) -> None:
        content = write_tar(tmp_path / "x.tar", img2dataset_samples(start, stop)).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        repository.files[f"deep/{name}"] = StoredFile(sha256, len(content), content, is_large=True)

    for number in range(12):
        put(f"{number:05d}.tar", 2 * number, 2 * number + 2)
    with fake_hub() as hub:
        use_hub(hub, monkeypatch)
        hub.repositories["datasets/lab/plants"] = repository
        for place in ("deep/{00000..00011}.tar", "deep", "**/*.tar"):
            values = {"shards": f"hf://datasets/lab/plants/{place}", "cache_dir": str(tmp_path / "cache")}
            data = DataSettings(**values)
            pool = opened(data)
            assert contents(pool, data) == of_samples(24)
        hub.log.clear()
        assert opened(data).fingerprints == pool.fingerprints
        assert sum("/tree/" in line for line in hub.log) <= 1 + shard_index._NUM_THREADS, "once a thread, not a shard"
        with_ranges = DataSettings(**values, cache_gb=1e-4)
        assert contents(opened(with_ranges), with_ranges) == of_samples(24)
        listing = list_pictures([f"hf://datasets/lab/plants/{place}"])
        assert listing.read(23) == of_samples(24)[23][0]
        put("00003.tar", 100, 105)
        assert opened(data).fingerprints != pool.fingerprints
        assert "hf://datasets/lab/plants/deep/00003.tar: changed since it was indexed" in capfd.readouterr().err
        with pytest.raises(ConfigError, match=r"plants/deep/9.tar: no such shard"):
            opened(DataSettings(shards="hf://datasets/lab/plants/deep/9.tar", cache_dir=str(tmp_path / "cache")))
        with pytest.raises(ConfigError, match="no such shard; a data set of the Hub is hf://datasets/OWNER/NAME"):
            opened(DataSettings(shards="hf://lab/plants/deep/00000.tar", cache_dir=str(tmp_path / "cache")))


@pytest.mark.parametrize("name", ["s3x://bucket/0.tar", "s3x://bucket/{0..1}.tar", "s3x://bucket/*.tar"])
def test_an_unknown_kind_of_address_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="s3x://: no such kind of address"):
        opened(DataSettings(shards=name, cache_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("hf://plants", "hf://plants: is no address of shards: ValueError: Repository id must be 'namespace/name'"),
        (
            "hf://",
            "hf://: its file system cannot list what lies there; name shards; a data set of the Hub is hf://datasets/",
        ),
    ],
)
def test_what_is_no_place_of_the_hub_is_one_line(place: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        opened(DataSettings(shards=place, cache_dir=str(tmp_path)))


class DownHandler(PlainHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815  (a name of http.server)


@pytest.mark.parametrize("web", [DownHandler], indirect=True)
def test_a_web_server_that_is_down_is_not_taken_for_a_shard_that_is_gone(
    web: tuple[str, Path, type[PlainHandler]], tmp_path: Path
) -> None:
    """Nor is the token of its address told."""
    for address in (web[0], "http://127.0.0.1:9"):
        data = DataSettings(shards=f"{address}/0.tar?token=hunter2", cache_dir=str(tmp_path / "cache"))
        with pytest.raises(RetryableError, match=r"/0.tar\?token=\*\*\* cannot be read now \(Client") as told:
            opened(data)
        assert "hunter2" not in str(told.value)


class WholeHandler(PlainHandler):
    """Says so beforehand."""

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "none")
        super().end_headers()


@pytest.mark.parametrize("web", [WholeHandler], indirect=True)
def test_a_server_that_says_that_it_has_no_ranges_is_read_to_the_end(
    web: tuple[str, Path, type[PlainHandler]], tmp_path: Path
) -> None:
    address, folder, _ = web
    write_tar(folder / "0.tar", img2dataset_samples(0, 20))
    with storage.open_file(f"{address}/0.tar") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        assert len(tar.getnames()) == 60
    with storage.open_file(f"{address}/0.tar") as stream, pytest.raises(ConfigError, match=r"0.tar: its server sends"):
        stream.seek(0, os.SEEK_END)
    data = DataSettings(shards=f"{address}/0.tar", cache_dir=str(tmp_path / "cache"))
    assert contents(opened(data), data) == of_samples(20)


@pytest.mark.parametrize("web", [PlainHandler, WholeHandler], indirect=True)
@pytest.mark.parametrize("num_bytes", [0, 1, 999, 1000, 1001, 2000, 5000])
def test_a_file_of_any_size_is_read_from_a_server_without_ranges(
    web: tuple[str, Path, type[PlainHandler]], num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_RANGE_BYTES", 1000)
    address, folder, _ = web
    content = bytes(number % 251 for number in range(num_bytes))
    (folder / "list.csv").write_bytes(content)
    chunks = itertools.islice(storage.read_chunks(f"{address}/list.csv"), 100)
    assert b"".join(chunks) == content


def test_a_command_that_ends_with_an_error_shows_no_secret(tmp_path: Path) -> None:
    assert foreign.shown("pipe:curl -H 'Authorization: Bearer s3cret' https://u:pw@h/x/07.tar?sig=a") == (
        "pipe:curl *** 07.tar"
    )
    assert foreign.shown("pipe:KEY=s3cret ./get 1") == "pipe: ***"
    with pytest.raises(ConfigError, match=r"pipe:cat \*\*\*: a command is run from a training config alone"):
        list_pictures(["pipe:cat secret"])
