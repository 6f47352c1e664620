"""A compressed tar gives the samples of the plain one, up to where it breaks off, in little memory."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from tars import tar_of

from manifests.errors import ConfigError
from manifests.samples import unpacking
from manifests.samples.endings import PICTURES, plain_tars, stem_of_tar
from manifests.samples.tars import ALL_TEXTS, samples_in
from manifests.samples.unpacking import Unpacked
from manifests.services.untrusted import BrokenTarError
from pipeline.sources.tars.samples import StoredTars, pass_samples


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, "zstd", asbytes=True))


PACKINGS: list[tuple[str, Callable[[bytes], bytes]]] = [("gzip", gzip.compress), ("zstd", zstd)]


def noise(number: int, num_bytes: int = 3000) -> bytes:
    """Bytes that cannot be compressed, another number others."""
    return b"".join(zlib.crc32(b"%d %d" % (number, part)).to_bytes(4, "little") for part in range(num_bytes // 4))


def plain(num: int = 40) -> bytes:
    return tar_of(
        member
        for number in range(num)
        for member in ((f"d/{number}.jpg", noise(number)), (f"d/{number}.txt", b"text %d" % number))
    )


def samples(stream: Any, start: int = 0) -> tuple[list[tuple[Any, ...]], str | None]:
    """Key, texts, pictures and places of the samples that are whole, and why there are no more."""
    found = []
    try:
        found.extend(
            (sample.key, sample.texts, sample.pictures, sample.begins, sample.stop)
            for sample in samples_in(stream, ALL_TEXTS, start=start, look=lambda member, _: read(stream, member))
        )
    except BrokenTarError as error:
        return found, str(error)
    return found, None


def read(stream: Any, member: Any) -> None:
    stream.seek(member.offset)
    assert len(stream.read(member.num_bytes)) == member.num_bytes


@pytest.mark.parametrize(("packing", "pack"), PACKINGS)
def test_samples_are_those_of_the_plain_tar(packing: str, pack: Callable[[bytes], bytes]) -> None:
    content = plain()
    expected, _ = samples(io.BytesIO(content))
    assert len(expected) == 40
    assert samples(Unpacked(io.BytesIO(pack(content)), packing)) == (expected, None)
    begins = expected[17][3]
    assert samples(Unpacked(io.BytesIO(pack(content)), packing), begins) == (expected[17:], None)


@pytest.mark.parametrize(("packing", "pack"), PACKINGS)
@pytest.mark.parametrize("cut", [1, 1000, 4096, 65_537])
def test_a_tar_in_several_compressed_streams_is_one(
    packing: str, pack: Callable[[bytes], bytes], cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "_CHUNK_BYTES", 2048)
    content = plain()
    both = pack(content[:cut]) + pack(content[cut:])
    assert samples(Unpacked(io.BytesIO(both), packing)) == (samples(io.BytesIO(content))[0], None)


@pytest.mark.parametrize(("packing", "pack"), [("", bytes), *PACKINGS])
def test_tars_behind_one_another_are_read_as_one(packing: str, pack: Callable[[bytes], bytes]) -> None:
    """As `cat a.tar.gz b.tar.gz` makes them: only the first one was read, and nothing was said."""
    first, second = plain(3), tar_of([("other.jpg", noise(7)), ("other.txt", b"text")])
    together = pack(first) + pack(second)
    stream = Unpacked(io.BytesIO(together), packing) if packing else io.BytesIO(together)
    found, why = samples(stream)
    assert [sample[0] for sample in found] == ["d/0", "d/1", "d/2", "other"]
    assert why is None
    again = Unpacked(io.BytesIO(together), packing) if packing else io.BytesIO(together)
    assert samples(again, found[2][4]) == (found[3:], None)


@pytest.mark.parametrize("cut", [0, 1, 9, 300, 700, 5_000, 20_011, 65_536, 70_001, 100_000, 120_500, -9, -1])
def test_every_sample_before_a_cut_is_kept(cut: int) -> None:
    """As many as the plain tar has that was cut where the unpacked bytes end."""
    content = plain()
    packed = gzip.compress(content)[:cut]
    num_unpacked = len(zlib.decompressobj(31).decompress(packed))
    expected, broken = samples(io.BytesIO(content[:num_unpacked]))
    found, why = samples(Unpacked(io.BytesIO(packed), "gzip"))
    assert [sample[:4] for sample in found] == [sample[:4] for sample in expected]
    if cut < 0:  # no sample is lost, and the file is not what it was: its checksum is gone
        assert len(found) == 40
        assert "its gzip data cannot be unpacked further" in str(why)
    else:
        assert (why is None) == (broken is None)
        assert len(found) < 40


@pytest.mark.parametrize("cut", [3, 3_000, 60_000, 100_000, 111_111])
def test_a_zstd_frame_that_is_cut_keeps_what_is_before(cut: int) -> None:
    frames = b"".join(zstd(plain()[start : start + 30_000]) for start in range(0, len(plain()), 30_000))
    found, why = samples(Unpacked(io.BytesIO(frames[:cut]), "zstd"))
    assert found == samples(io.BytesIO(plain()))[0][: len(found)]
    assert len(found) >= cut // 30_000 * 30_000 // 4608 - 1
    assert why is not None
    assert "zstd data cannot be unpacked further" in why or "zstd data end there" in why


@pytest.mark.parametrize(("packing", "pack"), PACKINGS)
def test_a_small_file_that_unpacks_to_much_takes_little_memory(
    packing: str, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = io.BytesIO(pack(tar_of([("a.jpg", noise(1)), ("b.jpg", bytes(100 << 20)), ("c.jpg", noise(2))])))
    assert len(packed.getvalue()) < 1 << 20
    tars = StoredTars("", ("0.tar.gz",), PICTURES, (), lambda tar, sample: sample.key)
    tracemalloc.start()
    passed = list(pass_samples(Unpacked(packed, packing), 0, tars, 10 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(one.sample.key, one.body is None) for one in passed] == [("a", False), ("b", True), ("c", False)]
    assert peak < 40 << 20

    monkeypatch.setattr(unpacking, "FREE_BYTES", 20 << 20)
    packed.seek(0)
    found, why = samples(Unpacked(packed, packing))
    assert [sample[0] for sample in found] == ["a"]
    assert why is not None
    assert "over 100 times as much" in why


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
def test_what_is_not_compressed_so_is_broken_at_its_start(packing: str) -> None:
    found, why = samples(Unpacked(io.BytesIO(b"<html>not found</html>" * 100), packing))
    assert found == []
    assert why is not None
    assert f"no byte of the tar behind byte 0 (its {packing} data cannot be unpacked" in why


def test_a_fault_of_the_disk_is_no_broken_tar() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 60_000:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(OSError, match="Input/output error"):
        samples(Unpacked(Failing(gzip.compress(plain())), "gzip"))


def test_bytes_that_went_by_are_not_given_as_others() -> None:
    content = b"".join(noise(number, 1 << 20) for number in range(6))
    stream = Unpacked(io.BytesIO(gzip.compress(content, 1)), "gzip")
    stream.seek(5 << 20)
    assert stream.read(100) == content[5 << 20 :][:100]
    stream.seek(stream.kept_from)
    assert stream.read(10) == content[stream.kept_from :][:10]
    stream.seek(0)
    with pytest.raises(ValueError, match="byte 0 is no longer kept"):
        stream.read(1)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("a/0.tar.gz", "unpack it (`gunzip -k a/0.tar.gz`)"),
        ("a b/0.tgz", "unpack it (`gunzip -k 'a b/0.tgz'`)"),
        ("s3://b/0.tar.zst", "fetch it, unpack it (`zstd -d 0.tar.zst`)"),
        ("0.tar.bz2", "unpack it (`bunzip2 -k 0.tar.bz2`)"),
    ],
)
def test_where_samples_are_read_in_any_order_the_line_that_unpacks_is_said(name: str, line: str) -> None:
    with pytest.raises(ConfigError) as told:
        plain_tars(["1.tar", name])
    assert line in str(told.value)
    assert plain_tars([name, stem_of_tar(name) + ".tar", "x.jpg"]) == [stem_of_tar(name) + ".tar"]
