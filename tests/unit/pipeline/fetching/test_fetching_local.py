"""Pictures that lie here take the same measurement as downloaded ones; each ends with one outcome."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.fetching.local import read_local
from pipeline.fetching.pictures.image import StoredImage, measure_image
from pipeline.fetching.pictures.settings import ImageSettings
from pipeline.sources.files import BytesUnreadable, LocalReader, address_of, make_locator, split_locator

SETTINGS = ImageSettings(size_px=32, min_side_px=16)


def picture(seed: int, kind: str = "JPEG", size: int = 48) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def test_files_and_members_are_measured_as_downloads_are(tmp_path: Path) -> None:
    bodies = {"a": picture(1), "b": picture(2, "PNG"), "c": picture(3)}
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.jpg").write_bytes(bodies["a"])
    (tmp_path / "two.tar").write_bytes(b"x" * 512 + bodies["b"] + bodies["c"] + b"rest")
    rows = [
        ("c", "two", make_locator("two.tar", 512 + len(bodies["b"]), len(bodies["c"])), "of the tar"),
        ("a", "one", make_locator("a.jpg", 0, len(bodies["a"])), None),
        ("b", "two", make_locator("two.tar", 512, len(bodies["b"])), "of the tar"),
    ]
    readers = {"one": LocalReader(str(tmp_path / "one")), "two": LocalReader(str(tmp_path))}
    table, addresses = read_local(rows, readers, SETTINGS, tmp_path / "pool.tar")
    facts = table.to_pylist()
    sha256 = hashlib.sha256(bodies["a"]).hexdigest()
    assert addresses == {"a": f"a.jpg@0+{len(bodies['a'])}#{sha256}", "b": "of the tar", "c": "of the tar"}
    pool = (tmp_path / "pool.tar").read_bytes()
    assert [fact["sample_id"] for fact in facts] == ["a", "b", "c"]
    for fact in facts:
        expected = measure_image(bodies[fact["sample_id"]], SETTINGS)
        assert isinstance(expected, StoredImage)
        assert fact["outcome"] == "ok"
        assert fact["image_id"] == hashlib.sha256(bodies[fact["sample_id"]]).hexdigest()
        assert (fact["phash"], fact["stored_sha256"]) == (expected.phash, expected.stored_sha256)
        assert (fact["host"], fact["http_status"], fact["final_url"]) == (None, None, None)
        assert pool[fact["offset"] : fact["offset"] + fact["length"]] == expected.body


def test_every_trouble_has_an_outcome(tmp_path: Path) -> None:
    (tmp_path / "tiny.png").write_bytes(picture(1, "PNG", 8))
    (tmp_path / "page.jpg").write_bytes(b"<html>no picture</html>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "grown.jpg").write_bytes(b"123456")
    (tmp_path / "cut.tar").write_bytes(b"x" * 600)
    (tmp_path / "folder.jpg").mkdir()
    expected = {
        f"tiny.png@0+{(tmp_path / 'tiny.png').stat().st_size}": "image_too_small",
        "page.jpg@0+23": "not_an_image",
        "empty.jpg@0+0": "empty_body",
        "grown.jpg@0+5": "file_changed",
        "cut.tar@512+1000": "file_changed",
        "gone.jpg@0+5": "file_missing",
        "folder.jpg@0+5": "file_unreadable",
        "big.jpg@0+60000000": "body_too_large",
    }
    rows = [(f"{number:02d}", "s", locator, None) for number, locator in enumerate(expected)]
    table, addresses = read_local(rows, {"s": LocalReader(str(tmp_path))}, SETTINGS, tmp_path / "pool.tar")
    facts = table.to_pylist()
    assert [addresses[sample_id] for sample_id, _, locator, _ in rows[3:]] == [f"{row[2]}#" for row in rows[3:]]
    assert {rows[int(fact["sample_id"])][2]: fact["outcome"] for fact in facts} == expected
    assert all(fact["detail"] and fact["offset"] is None for fact in facts)


def test_a_file_that_was_replaced_after_it_was_looked_at_is_not_taken(tmp_path: Path) -> None:
    body = picture(1)
    (tmp_path / "a.jpg").write_bytes(body)
    locator = make_locator("a.jpg", 0, len(body))
    seen = {"0": address_of(locator, "0" * 64), "1": address_of(locator, hashlib.sha256(body).hexdigest())}
    rows = [(sample_id, "s", locator, address) for sample_id, address in seen.items()]
    table, addresses = read_local(rows, {"s": LocalReader(str(tmp_path))}, SETTINGS, tmp_path / "pool.tar")
    assert table["outcome"].to_pylist() == ["file_changed", "ok"]
    assert addresses == seen


def test_locators_go_there_and_back() -> None:
    for name in ("a.jpg", "with@sign+1/a@1+2.jpg", "sp ace.tar"):
        assert split_locator(make_locator(name, 12, 345)) == (name, 12, 345)
    with pytest.raises(ValueError, match="not a locator: a"):
        split_locator("a.jpg")


def test_only_a_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.files.MAX_OPEN_FILES", 2)
    for number in range(5):
        (tmp_path / str(number)).write_bytes(bytes([number]))
    with LocalReader(str(tmp_path)) as reader:
        for number in [*range(5), *range(5)]:
            assert reader.read(f"{number}@0+1", 10) == bytes([number])
            assert len(reader._open) <= 2
        with pytest.raises(BytesUnreadable, match="11 bytes, allowed 10"):
            reader.read("0@0+11", 10)
