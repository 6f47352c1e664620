"""A compressed tar is read once, front to back, and gives what the plain one gives, whatever befalls file and build."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
import yaml
from building import run_here
from foreign_tars import picture
from ingested import NUM, build, config_of, rejects_of, rows_of, tar_of, versions
from misbehaving.object_store import BUCKET, become_user, serving
from range_server import RangeServer, serving_ranges
from tars import tar_of as tar_of_members
from waiting import wait_until

from manifests.contract.catalog import Catalog
from manifests.contract.reader import open_reader
from pipeline.sources.tars import front_to_back
from pipeline.stages.ingest import tars as ingest_tars

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".tar": bytes,
    ".tar.gz": lambda content: gzip.compress(content, mtime=0),
    ".tgz": lambda content: gzip.compress(content, mtime=0),
    ".tar.zst": lambda content: bytes(pa.compress(content, "zstd", asbytes=True)),
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manifests.stores.faults.WAITS_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(front_to_back, "RANGE_BYTES", 16 << 10)
    monkeypatch.setattr(ingest_tars, "PIECE_BYTES", 20 << 10)


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with serving_ranges() as served:
        yield served


def put(folder: Path, ending: str = ".tar.gz", content: bytes | None = None) -> Path:
    """The tar of `tar_of`, packed, as FOLDER/tars/0ENDING; in place of what is there, as a download puts it."""
    (folder / "tars").mkdir(exist_ok=True)
    path = folder / f"tars/0{ending}"
    path.unlink(missing_ok=True)
    path.write_bytes(PACK[ending](tar_of(folder)) if content is None else content)
    return path


def unnamed(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The rows without the name of the tar."""
    return {key: [*values[:-1], values[-1].partition("@")[2]] for key, values in rows.items()}


def release_of(folder: Path) -> Path:
    (release,) = (folder / "work/releases").glob("tars-*/")
    return release


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a build of the plain tar."""
    folder = tmp_path_factory.mktemp("plain")
    build(config_of(folder, str(put(folder, ".tar"))), last="pack")
    return folder


@pytest.fixture(scope="module")
def here(plain: Path) -> dict[str, list[Any]]:
    """What the plain tar gives."""
    return unnamed(rows_of(plain / "work"))


@pytest.mark.parametrize("ending", [".tar.zst", pytest.param(".tgz", marks=pytest.mark.slow)])
def test_a_compressed_tar_gives_what_the_plain_one_gives(
    ending: str, tmp_path: Path, here: dict[str, list[Any]]
) -> None:
    put(tmp_path, ending)
    config = config_of(tmp_path, str(tmp_path / "tars"))
    build(config)
    assert unnamed(rows_of(tmp_path / "work")) == here
    assert len(here) == NUM
    assert "ingest: reused" in build(config)


def test_the_same_tar_compressed_again_or_moved_runs_nothing(tmp_path: Path) -> None:
    path = put(tmp_path)
    config = config_of(tmp_path, str(path))
    build(config)
    before, num_pool = versions(tmp_path / "work"), len(list((tmp_path / "work/pool").iterdir()))
    put(tmp_path, content=gzip.compress(tar_of(tmp_path), 1))
    said = build(config)
    assert "ingest: reused" in said
    assert "fetch: reused" in said
    assert versions(tmp_path / "work") == before
    assert sum(path.stat().st_size > 1024 for path in (tmp_path / "work/pool").iterdir()) <= num_pool


@pytest.mark.parametrize("share", [0.55, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.0, 0.3, 0.98))])
def test_a_tar_that_was_cut_keeps_what_is_before_and_the_whole_one_goes_on(
    share: float, tmp_path: Path, here: dict[str, list[Any]]
) -> None:
    whole = PACK[".tar.gz"](tar_of(tmp_path))
    path = put(tmp_path, content=whole[: int(share * len(whole))])
    (tmp_path / "tars/1.tar").write_bytes(tar_of(tmp_path, 100, 103))  # so that a build has rows
    config = config_of(tmp_path, str(tmp_path / "tars"))
    build(config)
    kept = {key: row for key, row in unnamed(rows_of(tmp_path / "work")).items() if key.startswith("0/")}
    assert {key: row[3:] for key, row in kept.items()} == {key: here[key][3:] for key in sorted(here)[: len(kept)]}
    assert abs(len(kept) - share * NUM) < 3
    ((reason, value),) = rejects_of(tmp_path / "work")
    assert reason == "broken_shard"
    assert value.startswith("0.tar.gz: no byte of the tar behind byte ")
    path.unlink()
    path.write_bytes(whole)
    build(config)
    rows = {key: row for key, row in unnamed(rows_of(tmp_path / "work")).items() if key.startswith("0/")}
    assert rows == here
    assert rejects_of(tmp_path / "work") == []


def test_a_picture_that_unpacks_to_too_much_has_its_outcome(tmp_path: Path) -> None:
    members = [("a.jpg", picture(1)), ("b.jpg", bytes(60 << 20)), ("c.jpg", picture(2))]
    path = put(tmp_path, content=gzip.compress(tar_of_members(members)))
    assert path.stat().st_size < 100_000
    build(config_of(tmp_path, str(path)))
    outcomes = {key: row[3] for key, row in rows_of(tmp_path / "work").items()}
    assert outcomes == {"0/a": "ok", "0/b": "body_too_large", "0/c": "ok"}


def test_other_settings_of_pictures_read_it_again(tmp_path: Path, here: dict[str, list[Any]]) -> None:
    config = config_of(tmp_path, str(put(tmp_path)), fetch_part_size=7)
    build(config)
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"fetch": {"image": {"size_px": 32}}}))
    assert "ingest: reused" in build(config)
    rows = unnamed(rows_of(tmp_path / "work"))
    assert {key: row[:5] for key, row in rows.items()} == {key: row[:5] for key, row in here.items()}
    assert not {row[5] for row in rows.values()} & {row[5] for row in here.values()}, "stored in another size"


def test_a_file_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    """The first is refused before any work; another one is a broken shard."""
    put(tmp_path, ".tar")
    (tmp_path / "tars/1.tar.gz").write_bytes(b"<html>not found</html>" * 100)
    build(config_of(tmp_path, str(tmp_path / "tars")))
    ((reason, value),) = rejects_of(tmp_path / "work")
    assert reason == "broken_shard"
    assert value.startswith("1.tar.gz: no byte of the tar behind byte 0 (its gzip data cannot be unpacked")
    told = build(config_of(tmp_path, str(tmp_path / "tars/1.tar.gz")), 2)
    assert "1.tar.gz is not compressed (gzip) as its name says; it begins with b'<html>not found</htm'" in told


@pytest.mark.parametrize("kind", ["http", pytest.param("s3", marks=pytest.mark.slow)])
def test_a_store_gives_each_byte_once(
    kind: str, server: RangeServer, tmp_path: Path, here: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = PACK[".tar.gz"](tar_of(tmp_path))
    if kind == "s3":
        with serving() as store:
            become_user(store, monkeypatch)
            fsspec.filesystem("s3", **store.options).pipe_file(f"{BUCKET}/theirs/0.tar.gz", content)
            build(config_of(tmp_path, f"s3://{BUCKET}/theirs"))
    else:
        server.put("0.tar.gz", content)
        build(config_of(tmp_path, f"{server.address}/0.tar.gz"))
        starts = sorted(start for name, start, _ in server.asked if name == "0.tar.gz" and start)
        assert starts == list(range(16 << 10, len(content), 16 << 10))
    assert unnamed(rows_of(tmp_path / "work")) == here


SMALL = """
import sys
from pipeline.cli import main
from pipeline.sources.tars import front_to_back
from pipeline.stages.ingest import tars as ingest_tars
front_to_back.RANGE_BYTES, ingest_tars.PIECE_BYTES = 16 << 10, 20 << 10
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_build_goes_on_and_measures_nothing_twice(server: RangeServer, tmp_path: Path, plain: Path) -> None:
    """Its release is that of a build that nobody disturbed, and has the samples of the plain tar."""
    server.put("0.tar.gz", PACK[".tar.gz"](tar_of(tmp_path)))
    address = f"{server.address}/0.tar.gz"
    config, killed = config_of(tmp_path, address), threading.Event()
    server.choose = lambda name, start: killed.wait(600) and None if start >= 64 << 10 else None
    process = subprocess.Popen([sys.executable, "-c", SMALL, "build", str(config)])
    # when the second is there, the first is committed
    wait_until(lambda: len(list((tmp_path / "work/tables/ingest").glob("samples-*.parquet"))) >= 2, process)
    process.kill()
    process.wait()
    killed.set()
    with Catalog.open(str(tmp_path / "work")) as catalog:
        before = {piece.key: piece for piece in catalog.parts_like("ingest", "tars")}
    assert before
    said = build(config, last="pack")
    assert "0.tar.gz: a compressed tar cannot be entered midway, so its first" in said
    with Catalog.open(str(tmp_path / "work")) as catalog:
        after = {piece.key: piece for piece in catalog.parts_like("ingest", "tars")}
    assert before.items() <= after.items()
    starts = sorted(piece.notes["start"] for piece in after.values())
    assert len(starts) == len(set(starts)) == len(after), "no stretch twice"
    with open_reader(str(tmp_path / "work")) as sql:
        assert sql.execute("SELECT count(*), count(DISTINCT sample_id) FROM fetched").fetchall() == [(NUM, NUM)]

    other = tmp_path / "other"
    other.mkdir()
    build(config_of(other, address), last="pack")
    records = [(release_of(folder) / "release.json").read_bytes() for folder in (tmp_path, other)]
    assert records[0] == records[1]
    shards = json.loads(records[0])["files"]
    assert any(name.startswith("shards/") for name in shards)
    for name in ("samples.parquet", *(name for name in shards if name.endswith(".tar"))):
        assert (release_of(tmp_path) / name).read_bytes() == (release_of(plain) / name).read_bytes()


def test_commands_before_and_after_a_build(tmp_path: Path) -> None:
    put(tmp_path)
    path = tmp_path / "first.yaml"
    done = run_here("init", "--domain", f"plant={tmp_path / 'tars'}", "--out", path)
    assert done.returncode == 0, done.stderr
    assert "webdataset:" in path.read_text()
    config = config_of(tmp_path, str(tmp_path / "tars"))
    done = run_here("estimate", config)
    assert done.returncode == 0, done.stderr
    assert f"{NUM} pictures of" in done.stdout
    assert "are on this machine; no host is asked for them" in done.stdout
    done = run_here("preview", config)
    assert done.returncode == 0, done.stderr
    build(config)
    with open_reader(str(tmp_path / "work")) as sql:
        ((sample_id,),) = sql.execute("SELECT sample_id FROM candidates LIMIT 1").fetchall()
    done = run_here("explain", tmp_path / "work", sample_id)
    assert done.returncode == 0, done.stderr
    assert "0.tar.gz" in done.stdout


def test_a_tar_whose_header_goes_on_is_entered_again(tmp_path: Path) -> None:
    """Long names stand in headers of their own, and a piece may begin with one."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(8):
            content = picture(number)
            info = tarfile.TarInfo(f"{'long/' * 30}{number:0100d}.jpg")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    build(config_of(tmp_path, str(put(tmp_path, content=gzip.compress(stream.getvalue())))))
    assert len(rows_of(tmp_path / "work")) == 8
