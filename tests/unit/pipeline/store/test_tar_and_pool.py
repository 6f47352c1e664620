"""Shards are plain tars that GNU tar and webdataset read, byte for byte the same, with offsets that point at bytes."""

from __future__ import annotations

import hashlib
import io
import random
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tars import tar_of

from manifests.errors import IntegrityError
from manifests.stores import storage
from manifests.stores.folder import note
from pipeline.stages.pack.record import sample_keys, shard_name
from pipeline.store import pool as pool_module
from pipeline.store import tar as tar_module
from pipeline.store.pool import PoolReader, PoolWriter
from pipeline.store.tar import BLOCK_BYTES, RECORD_BYTES, ArchiveWriter, member_header

SAMPLES = [
    (f"{number:032x}", [("jpg", bytes([number]) * size), ("txt", f"Röschen {number}".encode()), ("json", b"{}")])
    for number, size in enumerate((0, 1, 511, 512, 513, 20_000))
]


def archive_of(samples: list[tuple[str, list[tuple[str, bytes]]]]) -> tuple[bytes, dict[str, list[tuple[str, int]]]]:
    """An archive, and for each key the extensions of its members with the offsets of their contents."""
    stream = io.BytesIO()
    archive = ArchiveWriter(stream, digest := hashlib.sha256())
    placed = {key: [(name, archive.add(f"{key}.{name}", content)) for name, content in own] for key, own in samples}
    num_bytes = archive.finish()
    content = stream.getvalue()
    assert (len(content), hashlib.sha256(content).digest()) == (num_bytes, digest.digest())
    return content, placed


def test_gnu_tar_reads_it(tmp_path: Path) -> None:
    content, _ = archive_of(SAMPLES)
    (tmp_path / "a.tar").write_bytes(content)
    tar = shutil.which("tar")
    assert tar is not None, "GNU tar is part of every system this runs on"
    listed = subprocess.run([tar, "-tvf", "a.tar"], cwd=tmp_path, capture_output=True, text=True, env={"TZ": "UTC"})
    assert (listed.returncode, listed.stderr) == (0, "")
    assert len(listed.stdout.splitlines()) == 3 * len(SAMPLES)
    assert all(line.startswith("-rw-r--r-- 0/0") and "1970-01-01" in line for line in listed.stdout.splitlines())
    done = subprocess.run([tar, "-xf", "a.tar"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for key, members in SAMPLES:
        for extension, expected in members:
            assert (tmp_path / f"{key}.{extension}").read_bytes() == expected


def test_webdataset_reads_it() -> None:
    from webdataset import tariterators as iterators

    content, _ = archive_of(SAMPLES)
    with io.BytesIO(content) as stream:  # its own opener leaves files to the garbage collector
        found = list(iterators.group_by_keys(iterators.tar_file_expander([{"url": "a.tar", "stream": stream}])))
    assert [sample["__key__"] for sample in found] == [key for key, _ in SAMPLES]
    for sample, (_, members) in zip(found, SAMPLES, strict=True):
        assert {extension: sample[extension] for extension, _ in members} == dict(members)


def test_offsets_point_at_the_bytes() -> None:
    content, placed = archive_of(SAMPLES)
    for key, members in SAMPLES:
        for (extension, expected), (name, offset) in zip(members, placed[key], strict=True):
            assert name == extension
            assert content[offset : offset + len(expected)] == expected


def test_python_agrees_on_the_offsets() -> None:
    content, placed = archive_of(SAMPLES)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        theirs = {info.name: info.offset_data for info in archive}
    assert {f"{key}.{name}": offset for key, members in placed.items() for name, offset in members} == theirs


@pytest.mark.parametrize("buffer_bytes", [512, 2_000, 30_000, 1 << 20])
def test_the_buffer_shows_nowhere(monkeypatch: pytest.MonkeyPatch, buffer_bytes: int) -> None:
    """Members larger than the buffer, some that fill it, and small ones after large ones, whose padding is zero."""
    samples = [*SAMPLES, *((f"{key}_1", members) for key, members in reversed(SAMPLES))]
    expected = archive_of(samples)
    monkeypatch.setattr(tar_module, "BUFFER_BYTES", buffer_bytes)
    assert archive_of(samples) == expected
    monkeypatch.undo()
    named = [(f"{key}.{extension}", content) for key, members in samples for extension, content in members]
    assert expected[0] == tar_of(named, tarfile.USTAR_FORMAT)


def test_archives_are_whole_records() -> None:
    for num_blocks in range(2, 45, 2):
        content, _ = archive_of([(str(number), [("txt", b"x")]) for number in range(num_blocks // 2)])
        assert len(content) % RECORD_BYTES == 0
        assert 2 * BLOCK_BYTES <= len(content) - num_blocks * BLOCK_BYTES < 2 * BLOCK_BYTES + RECORD_BYTES
        assert not any(content[num_blocks * BLOCK_BYTES :])


def test_names_over_a_hundred_characters_are_refused() -> None:
    assert len(member_header("a" * 96 + ".jpg", 1)) == BLOCK_BYTES
    with pytest.raises(ValueError, match="at most 100 bytes of name"):
        member_header("a" * 97 + ".jpg", 1)
    with pytest.raises(ValueError, match="at most 100 bytes of name"):  # bytes count, not letters
        member_header("ö" * 49 + ".jpg", 1)


@pytest.mark.parametrize("copy", [0, 1, 12])
def test_keys_have_no_dots_and_fit(copy: int) -> None:
    keys = sample_keys(pa.table({"sample_id": ["0f" * 16] * 20, "copy": range(20)}))
    assert re.fullmatch(r"[0-9a-f]{32}(_\d+)?", keys[copy])
    assert len(member_header(f"{keys[copy]}.taxonomic_name.txt", 0)) == BLOCK_BYTES
    assert len(set(keys)) == 20


def test_shard_names_are_unique_over_splits() -> None:
    names = {shard_name("demo", split, number) for split in ("train", "heldout") for number in range(3)}
    assert len(names) == 6
    assert shard_name("demo", "train", 7) == "demo-000007.tar"


# ---- pool


@given(
    st.dictionaries(st.text("abcdef0123456789", min_size=1, max_size=32), st.binary(max_size=2000), max_size=8),
    st.lists(st.integers(1, 8000), min_size=2, max_size=2),
)
def test_a_pool_file_is_the_same_tar_whatever_the_order_and_the_memory(
    tmp_path_factory: pytest.TempPathFactory, pictures: dict[str, bytes], kept_bytes: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("pool")
    written = []
    for n, names in enumerate((list(pictures), list(reversed(pictures)))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pool_module, "MOST_KEPT_BYTES", kept_bytes[n])
            pool = PoolWriter(folder / f"{n}.tar")
        with pool:
            for name in names:
                pool.add(name, pictures[name])
            places = pool.finish()
        raw = (folder / f"{n}.tar").read_bytes()
        written.append(raw)
        assert {name: raw[at : at + length] for name, (at, length) in places.items()} == pictures
        with tarfile.open(folder / f"{n}.tar") as tar:
            found = [(m.name, m.mtime, m.mode, m.offset_data, tar.extractfile(m).read()) for m in tar]
        assert found == [(f"{name}.jpg", 0, 0o644, places[name][0], pictures[name]) for name in sorted(pictures)]
        blocks = sum(BLOCK_BYTES + len(body) + -len(body) % BLOCK_BYTES for body in pictures.values())
        assert len(raw) == blocks + 2 * BLOCK_BYTES, "nothing lies behind the two blocks that end a tar"
    assert written[0] == written[1]
    assert sorted(path.name for path in folder.iterdir()) == ["0.tar", "1.tar"]


@pytest.mark.parametrize("kept_bytes", [1, 1000])  # a file takes over above it, or not
def test_an_error_leaves_nothing_of_a_pool_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    monkeypatch.setattr(pool_module, "MOST_KEPT_BYTES", kept_bytes)

    def fail_after_writing() -> None:
        with PoolWriter(tmp_path / "a.tar") as pool:
            pool.add("a", b"x")
            pool.add("b", b"y")
            pool.finish()
            raise KeyError

    with pytest.raises(KeyError):
        fail_after_writing()
    assert list(tmp_path.iterdir()) == []


def test_the_pool_gives_back_what_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "MAX_OPEN_FILES", 3)
    (tmp_path / "pool").mkdir()
    places = []
    for number in range(7):
        content, placed = archive_of(
            [(key, [(e, c + bytes([number])) for e, c in members]) for key, members in SAMPLES]
        )
        (tmp_path / "pool" / f"{number}.tar").write_bytes(content)
        places += [
            (f"{number}.tar", offset, len(expected) + 1, expected + bytes([number]))
            for key, members in SAMPLES
            for (_, offset), (_, expected) in zip(placed[key], members, strict=True)
        ]
    with PoolReader(str(tmp_path)) as pool:
        for pool_file, offset, length, expected in sorted(places, key=lambda place: hash(place[1:3])):
            pool.announce([(pool_file, offset, length)])  # which changes nothing that can be seen
            assert pool.read(pool_file, offset, length, sha256_of(expected)) == expected
            assert len(pool._open) <= 3


def test_a_pool_that_changed_is_an_integrity_error(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "a.tar").write_bytes(b"short")
    with PoolReader(str(tmp_path)) as pool:
        with pytest.raises(IntegrityError, match=r"pool/a\.tar: ends before byte 1,100; `plantmix repair"):
            pool.read("a.tar", 100, 1000, sha256_of(b""))
        with pytest.raises(IntegrityError, match=r"pool/b\.tar: a part of the pool is gone; `plantmix repair"):
            pool.read("b.tar", 0, 1, sha256_of(b""))
        with pytest.raises(IntegrityError, match=r"pool/a\.tar: not the picture stored at byte 1; `plantmix repair"):
            pool.read("a.tar", 1, 3, sha256_of(b"hur"))
        assert pool.read("a.tar", 1, 3, sha256_of(b"hor")) == b"hor"


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_pool_in_a_store_is_read_by_exact_ranges(tmp_path: Path) -> None:
    """Neighbours in one request, as long as it reads little else; a repeated picture is read once."""
    place = f"memory://{tmp_path.name}"
    note(str(tmp_path), place)
    rng = random.Random(0)
    pictures = {f"{number:032x}": rng.randbytes(50 if number % 2 else 40_000) for number in range(20)}
    with PoolWriter(tmp_path / "part.tar") as pool:
        for name, content in pictures.items():
            pool.add(name, content)
        places = pool.finish()
    fs, inner = storage.filesystem(f"{place}/pool/a.tar")
    fs.pipe_file(inner, (tmp_path / "part.tar").read_bytes())
    wanted = [name for number, name in enumerate(pictures) if number not in (4, 5, 6)]
    rows = [
        {
            "pool_file": "a.tar",
            "offset": places[name][0],
            "length": places[name][1],
            "stored_sha256": sha256_of(pictures[name]),
        }
        for name in [*reversed(wanted), wanted[3]]
    ]
    read: list[tuple[int, int]] = []
    cat_file = type(fs).cat_file

    def counted(self: Any, path: str, start: int, end: int, **options: Any) -> bytes:
        read.append((start, end))
        return bytes(cat_file(self, path, start, end, **options))

    with pytest.MonkeyPatch.context() as patch, PoolReader(str(tmp_path)) as pool:
        patch.setattr(type(fs), "cat_file", counted)
        assert list(pool.read_rows(rows)) == [pictures[name] for name in [*reversed(wanted), wanted[3]]]
        num_used = sum(len(pictures[name]) for name in wanted)
        assert sum(end - start for start, end in read) <= 1.1 * num_used
        assert len(read) == 2, "of seventeen pictures that lie in two rows"
        fs.pipe_file(inner, b"short")
        with pytest.raises(IntegrityError, match=r"pool/a\.tar: ends before byte"):
            pool.read("a.tar", 1, 1000, sha256_of(b""))
        fs.rm(inner)
        with pytest.raises(IntegrityError, match=r"pool/a\.tar: a part of the pool is gone; `plantmix repair"):
            pool.read("a.tar", 512, 3, sha256_of(b""))
