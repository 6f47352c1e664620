"""Shards are plain tars that GNU tar and webdataset read, byte for byte the same, with offsets that point at bytes."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from manifests.errors import IntegrityError
from pipeline.stages import pool as pool_module
from pipeline.stages.pool import PoolReader
from pipeline.stages.record import sample_key, shard_name
from pipeline.stages.tar import BLOCK_BYTES, RECORD_BYTES, Member, append_sample, end_of_archive, member_bytes

SAMPLES = [
    (f"{number:032x}", [("jpg", bytes([number]) * size), ("txt", f"Röschen {number}".encode()), ("json", b"{}")])
    for number, size in enumerate((0, 1, 511, 512, 513, 20_000))
]


def archive_of(samples: list[tuple[str, list[tuple[str, bytes]]]]) -> tuple[bytes, dict[str, list[Member]]]:
    content, placed = b"", {}
    for key, members in samples:
        block, placed[key] = append_sample(len(content), key, members)
        content += block
    return content + end_of_archive(len(content)), placed


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
    iterators = pytest.importorskip("webdataset.tariterators")
    content, _ = archive_of(SAMPLES)
    with io.BytesIO(content) as stream:  # its own opener leaves files to the garbage collector
        found = list(iterators.group_by_keys(iterators.tar_file_expander([{"url": "a.tar", "stream": stream}])))
    assert [sample["__key__"] for sample in found] == [key for key, _ in SAMPLES]
    for sample, (_, members) in zip(found, SAMPLES, strict=True):
        assert {extension: sample[extension] for extension, _ in members} == dict(members)


def test_offsets_point_at_the_bytes() -> None:
    content, placed = archive_of(SAMPLES)
    for key, members in SAMPLES:
        assert [member.name for member in placed[key]] == [extension for extension, _ in members]
        for member, (_, expected) in zip(placed[key], members, strict=True):
            assert content[member.offset : member.offset + member.length] == expected


def test_python_agrees_on_the_offsets() -> None:
    content, placed = archive_of(SAMPLES)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        theirs = {info.name: (info.offset_data, info.size) for info in archive}
    ours = {f"{key}.{m.name}": (m.offset, m.length) for key, members in placed.items() for m in members}
    assert ours == theirs


def test_archives_are_whole_records() -> None:
    for num_blocks in range(45):
        end = end_of_archive(num_blocks * BLOCK_BYTES)
        assert len(end) >= 2 * BLOCK_BYTES
        assert (num_blocks * BLOCK_BYTES + len(end)) % RECORD_BYTES == 0
        assert len(end) < 2 * BLOCK_BYTES + RECORD_BYTES


def test_names_over_a_hundred_characters_are_refused() -> None:
    assert len(member_bytes("a" * 96 + ".jpg", b"x")) == 2 * BLOCK_BYTES
    with pytest.raises(ValueError, match="at most 100 bytes of name"):
        member_bytes("a" * 97 + ".jpg", b"x")
    with pytest.raises(ValueError, match="at most 100 bytes of name"):  # bytes count, not letters
        member_bytes("ö" * 49 + ".jpg", b"x")


@pytest.mark.parametrize("copy", [0, 1, 12])
def test_keys_have_no_dots_and_fit(copy: int) -> None:
    key = sample_key({"sample_id": "0f" * 16, "copy": copy})
    assert re.fullmatch(r"[0-9a-f]{32}(_\d+)?", key)
    assert len(member_bytes(f"{key}.taxonomic_name.txt", b"")) == BLOCK_BYTES
    assert len({sample_key({"sample_id": "0f" * 16, "copy": number}) for number in range(20)}) == 20


def test_shard_names_are_unique_over_splits() -> None:
    names = {shard_name("demo", split, number) for split in ("train", "heldout") for number in range(3)}
    assert len(names) == 6
    assert shard_name("demo", "train", 7) == "demo-000007.tar"


# ---- pool


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
            (f"{number}.tar", member.offset, member.length, expected + bytes([number]))
            for key, members in SAMPLES
            for member, (_, expected) in zip(placed[key], members, strict=True)
        ]
    with PoolReader(str(tmp_path)) as pool:
        for pool_file, offset, length, expected in sorted(places, key=lambda place: hash(place[1:3])):
            assert pool.read(pool_file, offset, length) == expected
            assert len(pool._open) <= 3


def test_a_pool_that_changed_is_an_integrity_error(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "a.tar").write_bytes(b"short")
    with PoolReader(str(tmp_path)) as pool:
        with pytest.raises(IntegrityError, match=r"pool/a\.tar: ends before byte 1,100; it was changed"):
            pool.read("a.tar", 100, 1000)
        with pytest.raises(IntegrityError, match=r"pool/b\.tar: a part of the pool is gone; build again"):
            pool.read("b.tar", 0, 1)
        assert pool.read("a.tar", 1, 3) == b"hor"
