"""A folder of pictures in a real S3 server whose answers fail: nothing is lost, and nothing is sealed short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from building import build_own_pictures, folder_source, release_of, write_small_config
from misbehaving.object_store import BUCKET, Store, serving
from release_writer import draw_picture, drawn_samples

from manifests.contract.release import FORMAT, Release
from manifests.errors import RetryableError
from manifests.stores import storage
from pipeline.cli import main
from pipeline.config import SourceSettings
from pipeline.sources.reading import check_source, digest_inputs, read_rows

NUM = 12


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with serving() as found:
        fs = fsspec.filesystem("s3", **found.options)
        for number in range(NUM):
            fs.pipe_file(f"{BUCKET}/pictures/{number:03}.jpg", draw_picture("red", "circle", number))
            fs.pipe_file(f"{BUCKET}/pictures/{number:03}.txt", f"plant number {number} in the field".encode())
        yield found


@pytest.fixture
def config(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build of the bucket, which finds the store in its environment as users set it."""
    for name, value in store.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 2)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    source = folder_source(f"s3://{BUCKET}/pictures")
    source["folder"]["captions"] = "text_file"
    run = {"fetch_part_size": 4, "max_attempts": 4, "retry_wait_seconds": 0.01}
    return write_small_config(tmp_path, source, dedup={"radius": 0}, run=run)


def fail_from_the_sixth(store: Store, fault: str, times: int, ending: str = ".jpg") -> None:
    """From the sixth file with this ending on, answer `times` requests for such files with the fault."""
    seen, left, lock = set(), [times], threading.Lock()

    def choose(method: str, path: str) -> str | None:
        if method != "GET" or not path.partition("?")[0].endswith(ending):
            return None
        with lock:
            seen.add(path.partition("?")[0])
            if len(seen) < 6 or not left[0]:
                return None
            left[0] -= 1
        return fault

    store.choose, store.injected = choose, 0


@pytest.mark.parametrize(
    "fault",
    [
        "expired",
        *(
            pytest.param(fault, marks=pytest.mark.slow)
            for fault in ("expired_403", "slow_down", "reset", "truncated", "slow")
        ),
    ],
)
def test_a_store_that_comes_back_costs_no_picture(
    store: Store, config: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_from_the_sixth(store, fault, times=5)
    assert main(["build", str(config), "--to", "fetch"]) == 0
    assert store.injected == 5
    assert f"fetch: done, {NUM} of {NUM} kept" in capsys.readouterr().err


def test_captions_that_cannot_be_read_now_are_not_taken_for_missing(
    store: Store, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was found: a picture whose text file was refused for a moment had no caption, and was dropped for it."""
    monkeypatch.setattr("manifests.stores.faults.WAITS_SECONDS", (0.01,))
    fail_from_the_sixth(store, "expired_403", times=10**9, ending=".txt")
    assert main(["build", str(config)]) == 1
    assert ".txt cannot be read now (PermissionError" in capsys.readouterr().err
    store.choose, store.requests = lambda method, path: None, []
    assert main(["build", str(config), "--to", "ingest"]) == 0
    assert f"ingest: done, {NUM} of {NUM} kept" in capsys.readouterr().err


def put_in_parts(fs: Any, key: str, content: bytes) -> None:
    """Upload as clients upload large files: the same bytes get another ETag."""
    place = {"Bucket": BUCKET, "Key": key}
    upload = {**place, "UploadId": fs.call_s3("create_multipart_upload", **place)["UploadId"]}
    etag = fs.call_s3("upload_part", **upload, PartNumber=1, Body=content)["ETag"]
    parts = {"Parts": [{"ETag": etag, "PartNumber": 1}]}
    fs.call_s3("complete_multipart_upload", **upload, MultipartUpload=parts)


def test_captions_are_known_by_their_content(store: Store, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their ETags only say which are hashed again. As it was found, each look asked for every text."""

    def texts_asked_for() -> int:
        store.requests = []
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # a build is a process of its own, and lists anew
        assert main(["build", str(config), "--to", "ingest"]) == 0
        return len([path for _, path in store.requests if ".txt" in path])

    store.choose = lambda method, path: None
    fs = fsspec.filesystem("s3", **store.options)
    key = "pictures/005.txt"
    before = fs.cat_file(f"{BUCKET}/{key}")
    assert texts_asked_for() == 2 * NUM, "to know them, then to read them"
    assert texts_asked_for() == 0, "the listing says that no text has changed"
    capsys.readouterr()
    try:
        put_in_parts(fs, key, before)
        assert texts_asked_for() == 1
        assert "ingest: reused" in capsys.readouterr().err
        fs.pipe_file(f"{BUCKET}/{key}", before.replace(b"5", b"6"))  # as long as it was
        assert texts_asked_for() == 1 + NUM
        assert f"ingest: done, {NUM} of {NUM} kept" in capsys.readouterr().err
    finally:
        fs.pipe_file(f"{BUCKET}/{key}", before)


@pytest.mark.parametrize("kind", ["table", "folder", "webdataset"])
def test_a_source_refused_for_a_moment_is_neither_wrong_nor_short(
    store: Store, config: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was found: "permission denied", "cannot be read as csv", and a shard without the rows of its Parquet."""
    monkeypatch.setattr("manifests.stores.faults.WAITS_SECONDS", (0.01,))
    fs = fsspec.filesystem("s3", **store.options)
    fs.pipe_file(f"{BUCKET}/list/a.csv", b"url,caption\nhttp://host/1,a plant\n")
    rows = [{"key": "0", "url": "http://host/0", "status": "failed_to_download", "error_message": "HTTP Error 404"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(__file__, "1.txt")
    fs.put([str(tmp_path / "0.parquet"), str(tmp_path / "0.tar")], f"{BUCKET}/shards/")
    place, refused = {
        "table": ({"table": f"s3://{BUCKET}/list/a.csv", "columns": {"url": "url", "caption": "caption"}}, "a.csv"),
        "folder": ({"folder": {"path": f"s3://{BUCKET}/pictures"}}, "list-type"),
        "webdataset": ({"webdataset": {"path": f"s3://{BUCKET}/shards"}}, "0.parquet"),
    }[kind]
    source = SourceSettings.model_validate({"name": kind, "domain": "plant", **place})

    def refuse_once() -> None:
        left = [1]
        store.choose = lambda method, path: "expired_403" if refused in path and left and left.pop() else None
        fsspec.get_filesystem_class("s3").clear_instance_cache()

    refuse_once()
    check_source(source)
    refuse_once()
    assert digest_inputs(source, lambda path: storage.hash_file(path).sha256)
    refuse_once()
    with suppress(RetryableError, PermissionError):  # either fails the part, which is tried again
        patient = list(read_rows(source, nullcontext))
        assert [batch.rows for batch in patient] == [batch.rows for batch in read_rows(source, nullcontext)]
    assert list(read_rows(source, nullcontext))


def test_a_release_that_is_refused_for_a_moment_opens(
    store: Store, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pointer to it, and its record."""
    monkeypatch.setattr("manifests.stores.faults.WAITS_SECONDS", (0.01,))
    record = {"format": FORMAT, "name": "demo", "version": "abc", "fingerprint": "a", "splits": {}, "files": {}}
    folder = f"{BUCKET}/lab/releases"
    fs = fsspec.filesystem("s3", **store.options)
    fs.pipe_file(f"{folder}/LATEST", b"demo-abc\n")
    fs.pipe_file(f"{folder}/demo-abc/release.json", json.dumps(record).encode())
    for refused in ("releases/LATEST", "demo-abc/release.json"):
        left = [1]
        store.choose = lambda method, path, name=refused, left=left: (
            "expired_403" if method == "GET" and name in path and left and left.pop() else None
        )
        assert Release.open(f"s3://{BUCKET}/lab").name == "demo-abc"
        assert not left


@pytest.mark.slow
def test_the_wait_between_tries_grows(store: Store, config: Path) -> None:
    values = yaml.safe_load(config.read_text())
    values["run"] |= {"max_attempts": 3, "retry_wait_seconds": 0.4}
    config.write_text(yaml.safe_dump(values))
    fail_from_the_sixth(store, "expired", times=10**9)
    started = time.monotonic()
    assert main(["build", str(config)]) == 1
    assert time.monotonic() - started >= 0.4 + 1.2


@pytest.mark.parametrize(
    "fault", ["expired_403", *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("reset", "truncated"))]
)
def test_a_store_that_stays_away_fails_its_parts_and_seals_nothing(
    store: Store, config: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_from_the_sixth(store, fault, times=10**9)
    assert main(["build", str(config)]) == 1
    said = capsys.readouterr().err
    assert "fetch: 2 of 3 parts failed, the others are kept" in said
    assert f"s3://{BUCKET}/pictures/00" in said
    assert "cannot be read now" in said
    assert not (config.parent / "work" / "releases").exists()
    store.choose = lambda method, path: None
    assert main(["build", str(config), "--to", "fetch"]) == 0, "the same command goes on"
    assert f"fetch: done, {NUM} of {NUM} kept" in capsys.readouterr().err


@pytest.mark.slow
def test_what_export_prints_of_a_release_in_a_store_runs(store: Store, tmp_path: Path) -> None:
    (tmp_path / "pics/garden").mkdir(parents=True)
    for sample in drawn_samples(20, 0):
        (tmp_path / f"pics/garden/{sample.record_key}.jpg").write_bytes(sample.jpg)
    build_own_pictures(tmp_path)
    path = release_of(tmp_path / "work")
    fsspec.filesystem("s3", **store.options).put(str(path), f"{BUCKET}/webdataset/toy", recursive=True)
    env = os.environ | store.environment()

    def run(code: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300, env=env, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    plantmix = "import sys; from pipeline.cli import main; sys.exit(main())"
    code = run(plantmix, "export", f"s3://{BUCKET}/webdataset/toy", "--for", "webdataset")
    told = run(code + "\nfor row in dataset: print('READ:' + row['__key__'])\n")
    read = [line for line in told.splitlines() if line.startswith("READ:")]
    assert len(set(read)) == len(read) == Release.open(str(path)).num_samples("train") > 0
