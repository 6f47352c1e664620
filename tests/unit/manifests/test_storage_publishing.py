"""A published file is wholly there or not there; what a crash leaves is swept, and nothing else is."""

from __future__ import annotations

import hashlib
import tempfile
import uuid
from pathlib import Path

import fsspec
import pytest

from manifests.errors import ConfigError, IntegrityError
from manifests.stores import storage


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "work")
    return f"memory://{uuid.uuid4().hex}/work"


def read(path: str) -> bytes:
    fs, inner = storage.filesystem(path)
    return bytes(fs.cat_file(inner))


def names(folder: str) -> list[str]:
    fs, inner = storage.filesystem(folder)
    return sorted(name.rpartition("/")[2] for name in fs.find(inner))


def test_publish_bytes_says_what_it_wrote(folder: str) -> None:
    storage.make_folder(folder)
    path = storage.join(folder, "a.bin")
    for content in (b"first", b"", b"second" * 100_000):
        written = storage.publish_bytes(path, content)
        assert read(path) == content
        assert (written.num_bytes, written.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert storage.hash_file(path) == written
    assert names(folder) == ["a.bin"]


def test_a_private_file_is_not_seen_under_the_public_name(folder: str) -> None:
    storage.make_folder(folder)
    path = storage.join(folder, "a.bin")
    storage.publish_bytes(path, b"old")
    temp = storage.temp_path(path)
    fs, inner = storage.filesystem(temp)
    with fs.open(inner, "wb") as stream:
        stream.write(b"new")
    assert read(path) == b"old"
    storage.publish(temp, path)
    assert read(path) == b"new"
    assert names(folder) == ["a.bin"]


def test_publishing_what_is_gone_leaves_the_old_state(folder: str) -> None:
    storage.make_folder(folder)
    path = storage.join(folder, "a.bin")
    storage.publish_bytes(path, b"old")
    with pytest.raises(IntegrityError, match="private file to publish is gone"):
        storage.publish(storage.temp_path(path), path)
    assert read(path) == b"old"


def write_private(path: str) -> str:
    temp = storage.temp_path(path)
    Path(temp).write_bytes(path.encode())
    return temp


def test_files_published_together_are_durable_before_and_their_folders_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "tables").mkdir()
    paths = [str(tmp_path / name) for name in ("pool/a.tar", "tables/a.parquet", "tables/b.parquet")]
    files = [(write_private(path), path) for path in paths]
    made_durable: list[tuple[str, int]] = []

    def note(path: str) -> None:
        made_durable.append((path, sum(Path(public).exists() for public in paths)))

    monkeypatch.setattr(storage, "_sync", note)
    storage.publish_all(files)
    folders = [str(tmp_path / "pool"), str(tmp_path / "tables")]
    assert made_durable == [*((temp, 0) for temp, _ in files), *((folder, 3) for folder in folders)]
    assert [read(path) for path in paths] == [path.encode() for path in paths]


def test_none_of_several_files_is_published_where_one_is_gone(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a.bin", "b.bin")]
    files = [(write_private(path), path) for path in paths]
    Path(files[1][0]).unlink()
    with pytest.raises(IntegrityError, match="private file to publish is gone"):
        storage.publish_all(files)
    assert names(str(tmp_path)) == [files[0][0].rpartition("/")[2]]


def test_a_failed_write_never_touches_the_public_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "a.bin")
    storage.publish_bytes(path, b"old")

    def full_disk(_stream: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_sync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            storage.publish_bytes(path, b"new")
    assert read(path) == b"old"
    assert names(str(tmp_path)) == ["a.bin"]


def test_sweep_takes_private_names_at_any_depth_and_nothing_else(folder: str) -> None:
    kept = ["a.tmp-notes.txt", "x.tmp-", "data.tmp-0123456789ab", ".hidden", "deep/b.parquet"]
    for name in kept:
        path = storage.join(folder, *name.split("/"))
        storage.make_folder(path.rpartition("/")[0])
        storage.publish_bytes(path, b"user's")
    for name in ("deep/deeper/c.tar", "deep/c.tar", "d.json"):
        temp = storage.join(folder, *storage.temp_path(name).split("/"))
        storage.make_folder(temp.rpartition("/")[0])
        fs, inner = storage.filesystem(temp)
        fs.pipe_file(inner, b"left over")
    assert len(names(folder)) == len(kept) + 3
    for _ in range(2):
        storage.sweep(folder)
    assert names(folder) == sorted(name.rpartition("/")[2] for name in kept)


def test_sweep_of_a_folder_that_is_not_there(folder: str) -> None:
    storage.sweep(storage.join(folder, "never"))
    assert names(folder) == []


def test_temp_names_are_private_and_lie_beside_the_file() -> None:
    first, second = storage.temp_path("/data/pool/a.tar"), storage.temp_path("/data/pool/a.tar")
    assert first != second
    assert first.startswith("/data/pool/.a.tar" + storage.TEMP_MARK)
    assert storage.temp_path("a.tar").startswith(".a.tar" + storage.TEMP_MARK)
    here = f"{tempfile.gettempdir()}/.a.tar{storage.TEMP_MARK}"
    assert storage.temp_path("s3://bucket/a.tar").startswith(here)


def test_make_folder_below_a_file_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for place in ("file", "file/below", "file/far/below"):
        with pytest.raises(ConfigError, match=r"cannot be written.*choose another place"):
            storage.make_folder(str(tmp_path / place))
    storage.make_folder(str(tmp_path / "a" / "b"))
    storage.make_folder(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()


def test_join_and_remote() -> None:
    assert storage.join("s3://bucket/runs/", "pool", "a.tar") == "s3://bucket/runs/pool/a.tar"
    assert storage.join("file:///data", "pool") == "/data/pool"
    assert storage.join("data", "pool", "a.tar") == "data/pool/a.tar"
    assert [storage.is_remote(path) for path in ("s3://b", "memory://x", "file:///x", "/x", "x")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_remove(folder: str) -> None:
    storage.make_folder(folder)
    path = storage.join(folder, "a.bin")
    storage.publish_bytes(path, b"x")
    storage.remove(path)
    fs, inner = storage.filesystem(path)
    assert not fs.exists(inner)


def test_memory_is_a_real_fsspec_store(folder: str) -> None:
    storage.make_folder(folder)
    path = storage.join(folder, "a.bin")
    storage.publish_bytes(path, b"seen by another handle")
    with fsspec.open(path, "rb") as stream:
        assert stream.read() == b"seen by another handle"
