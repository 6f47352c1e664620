"""Pictures that are built to be slow are refused by what their bytes hold; sound ones of every kind are not."""

from __future__ import annotations

import struct
import zlib

import pytest
from measuring import PLAIN, encode, picture, png_that_claims, rejected, stored
from PIL import Image

from manifests.contract.outcomes import Outcome
from manifests.pictures.opening import Unreadable, open_picture
from training.data.images import AugmentSettings, CorruptSample, TrainView

PROGRESSIVE = encode(picture(320, 240), "JPEG", progressive=True)
BASELINE = encode(picture(320, 240), "JPEG")


def _with_scans(body: bytes, num: int) -> bytes:
    """The last scan again and again: the decoder looks at every pixel each time."""
    scan = body.rindex(b"\xff\xda")
    return body[:scan] + body[scan:-2] * (num - body.count(b"\xff\xda") + 1) + body[-2:]


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def _chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _tiff_of_strips(num: int, order: str, big: bool) -> bytes:
    first = 16 + 8 + 20 if big else 8 + 2 + 12 + 4
    head = struct.pack(f"{order}2sHHHQ", b"II" if order == "<" else b"MM", 43, 8, 0, 16) if big else struct.pack(
        f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8
    )  # fmt: skip
    entries = struct.pack(f"{order}QHHQQ", 1, 273, 4, num, first) if big else struct.pack(
        f"{order}HHHII", 1, 273, 4, num, first
    )  # fmt: skip
    return head + entries + bytes(4 * num + 8)


PNG = encode(picture(), "PNG")
GIF = encode(picture(), "GIF")
GIF_START = 13 + (3 << (GIF[10] & 7) + 1)  # behind the colours
SLOW = {
    "101 scans": _with_scans(PROGRESSIVE, 101),
    "scans after a segment of unknown kind": PROGRESSIVE[:-2]
    + b"\xff\x02\xff\xff"
    + _with_scans(PROGRESSIVE, 200)[600:],
    "comments before the first scan": BASELINE[:2] + _segment(0xFE, b"") * 10_001 + BASELINE[2:],
    "nothing between segments": BASELINE[:2] + _segment(0xFE, b"") + b"\0" * 10_001 + BASELINE[2:],
    "chunks": PNG[:33] + _chunk(b"abCd") * 100_001 + PNG[33:],
    "comments of a GIF": GIF[:GIF_START] + b"\x21\xfe\1a\0" * 50_001 + GIF[GIF_START:],
    "blocks of one comment of a GIF": GIF[:GIF_START] + b"\x21\xfe" + b"\1a" * 100_001 + b"\0" + GIF[GIF_START:],
    "nothing between the blocks of a GIF": GIF[:GIF_START] + b"\1" * 100_001 + GIF[GIF_START:],
    "strips": _tiff_of_strips(100_001, "<", False),
    "big-endian strips": _tiff_of_strips(100_001, ">", False),
    "strips of a BigTIFF": _tiff_of_strips(100_001, "<", True),
    "comments of a PPM": b"P2\n40 40\n255\n" + b"#\n" * 101,
}


@pytest.mark.parametrize("name", SLOW)
def test_a_picture_built_to_be_slow_is_refused_at_once(name: str) -> None:
    found = rejected(SLOW[name])
    with pytest.raises(CorruptSample, match="too_costly"):
        TrainView((64, 64), AugmentSettings())(SLOW[name])
    assert found.outcome is Outcome.TOO_COSTLY
    assert not found.outcome.passing


def test_scans_are_counted_with_the_pixels() -> None:
    """60 scans are allowed for a small picture, not for one that nearly has the most pixels."""
    body = _with_scans(PROGRESSIVE, 60)
    stored(body)
    found = rejected(body, PLAIN.model_copy(update={"max_pixels": 320 * 240 + 1}))
    assert (found.outcome, found.detail) == (Outcome.TOO_COSTLY, "JPEG of 320 x 240 px in more than 16 scans")


@pytest.mark.parametrize(
    "body",
    [
        PROGRESSIVE,
        _with_scans(PROGRESSIVE, 100),
        PROGRESSIVE + b"\xff\xda" * 5000,  # a film behind its end
        PROGRESSIVE[:2] + _segment(0xE5, b"\xff\xda" * 5000) + PROGRESSIVE[2:],  # a camera's own notes
        BASELINE + b"\xff\xda" * 5000,
        BASELINE[:2] + _segment(0xE5, b"\xff\xda" * 5000) + BASELINE[2:],
        BASELINE[:2] + _segment(0xFE, b"note") * 1000 + BASELINE[2:],
        encode(picture(mode="CMYK"), "JPEG", progressive=True),
        encode(picture(mode="L"), "JPEG", progressive=True),
        PNG[:33] + _chunk(b"abCd") * 5000 + PNG[33:],
        GIF[:GIF_START] + b"\x21\xfe" + b"\1a" * 5000 + b"\0" + b"\x21\xfe\1a\0" * 500 + GIF[GIF_START:],
        GIF[:-1] + GIF[GIF_START:-1] * 100_000 + b";",  # a long film
        encode(Image.new("L", (40, 700)), "TIFF", strip_size=1, compression="tiff_lzw"),
        encode(picture(), "TIFF", big_tiff=True),
        b"P2\n#a\n40 40\n255\n" + b"7 " * 1600,
    ],
    ids=range(15),
)
def test_odd_but_sound_pictures_are_read(body: bytes) -> None:
    stored(body)


def test_a_profile_of_many_bytes_counts_as_none() -> None:
    plain = encode(picture(), "WEBP", lossless=True)
    with_profile = encode(picture(), "WEBP", lossless=True, icc_profile=b"\1" * (9 << 20))
    assert stored(with_profile)[0].body == stored(plain)[0].body


def test_the_most_pixels_hold_for_dalip_too() -> None:
    with pytest.raises(Unreadable, match="too_many_pixels"):
        open_picture(png_that_claims(14_000, 14_000))
