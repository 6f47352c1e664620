"""A release opens by its folder or its work folder, and what differs from the record is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.contract.release import FORMAT, LATEST_FILE, RECORD_FILE, SAMPLES_FILE, Release
from manifests.errors import ConfigError, IntegrityError
from pipeline.releases.opening import read_json


def sealed(folder: Path, **changes: Any) -> Path:
    """A small release of two splits with a record that fits it."""
    folder.mkdir(parents=True)
    shards = {
        ("train", "demo-000000.tar"): 2,
        ("train", "demo-000001.tar"): 1,
        ("heldout", "demo-heldout-000000.tar"): 1,
    }
    for split, shard in shards:
        place = folder / {"train": "shards", "heldout": "heldout"}[split]
        place.mkdir(exist_ok=True)
        (place / shard).write_bytes(shard.encode() * 100)
    rows = [
        {"split": split, "shard": shard, "position": position, "key": f"{shard}-{position}"}
        for (split, shard), num in shards.items()
        for position in range(num)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / SAMPLES_FILE)
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            files[path.relative_to(folder).as_posix()] = {
                "num_bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
    record = {
        "format": FORMAT,
        "name": "demo",
        "version": "abc",
        "fingerprint": "abcdef",
        "splits": {
            wanted: {
                "num_samples": sum(num for (split, _), num in shards.items() if split == wanted),
                "shards": [{"shard": shard} for split, shard in shards if split == wanted],
            }
            for wanted in ("train", "heldout")
        },
        "files": files,
        **changes,
    }
    (folder / RECORD_FILE).write_text(json.dumps(record))
    return folder


def test_opens_by_its_folder(tmp_path: Path) -> None:
    release = Release.open(str(sealed(tmp_path / "demo-abc")))
    assert (release.name, release.fingerprint) == ("demo-abc", "abcdef")
    assert release.splits == ("train", "heldout")
    assert [release.num_samples(split) for split in release.splits] == [3, 1]
    assert release.shards("train") == ["demo-000000.tar", "demo-000001.tar"]
    assert Path(release.shard_path("heldout", "demo-heldout-000000.tar")).is_file()
    assert release.samples().num_rows == 4
    assert release.samples("train")["position"].to_pylist() == [0, 1, 0]
    assert [*release.wrong_sizes(), *release.wrong_hashes(), *release.unknown_files()] == []


@pytest.mark.parametrize("by", ["work", "work/releases", "work/releases/demo-abc", "work/releases/demo-abc/"])
def test_opens_by_every_folder_above_it(tmp_path: Path, by: str) -> None:
    sealed(tmp_path / "work" / "releases" / "demo-old")
    folder = sealed(tmp_path / "work" / "releases" / "demo-abc")
    (tmp_path / "work" / "releases" / LATEST_FILE).write_text("demo-abc\n")
    release = Release.open(f"{tmp_path}/{by}")
    assert Path(release.path) == folder


def test_the_newest_of_a_name(tmp_path: Path) -> None:
    sealed(tmp_path / "releases" / "demo-abc")
    (tmp_path / "releases" / f"demo.{LATEST_FILE}").write_text("demo-abc\n")
    for given in (f"{tmp_path}/releases/demo", f"{tmp_path}/releases/demo/"):
        assert Release.open(given).path == str(tmp_path / "releases" / "demo-abc")


def test_opens_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed(tmp_path / "demo-abc")
    monkeypatch.chdir(tmp_path)
    assert Release.open("demo-abc").num_samples("train") == 3


def test_without_a_record_there_is_no_release(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "demo-abc")
    (folder / RECORD_FILE).unlink()
    for place in (folder, tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match=r"no sealed release here \(no release.json\)"):
            Release.open(str(place))


def test_latest_names_a_release_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "releases").mkdir()
    (tmp_path / "releases" / LATEST_FILE).write_text("demo-gone\n")
    with pytest.raises(ConfigError, match=r"demo-gone: no sealed release here"):
        Release.open(str(tmp_path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "demo-abc")
    (folder / "shards" / "demo-000001.tar").unlink()
    with pytest.raises(IntegrityError, match=r"1 of 4 files differ.*first: shards/demo-000001.tar is missing"):
        Release.open(str(folder))


def test_a_wrong_size_is_named_with_both_sizes(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "demo-abc")
    (folder / "shards" / "demo-000001.tar").write_bytes(b"short")
    with pytest.raises(IntegrityError, match=r"demo-000001.tar has 5 bytes, the record says 1,500"):
        Release.open(str(folder))


def test_other_content_of_the_same_size_is_found_by_hashes(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "demo-abc")
    path = folder / "shards" / "demo-000001.tar"
    path.write_bytes(path.read_bytes()[::-1])
    release = Release.open(str(folder))
    assert list(release.wrong_hashes()) == ["shards/demo-000001.tar has other content than when it was sealed"]


def test_files_that_the_record_does_not_know_are_named(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "demo-abc")
    (folder / "shards" / "mine.txt").write_text("x")
    assert list(Release.open(str(folder)).unknown_files()) == ["shards/mine.txt is not part of the release"]


def test_an_unknown_split_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    release = Release.open(str(sealed(tmp_path / "demo-abc")))
    for ask in (release.num_samples, release.shards, release.samples, lambda split: release.shard_path(split, "x")):
        with pytest.raises(ConfigError, match=r"no split 'test' in this release; it has train, heldout"):
            ask("test")


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (
            json.dumps({"format": "plantmix-release/99"}),
            ConfigError,
            "format 'plantmix-release/99', this",
        ),
        (json.dumps(["a list"]), ConfigError, "format 'list', this version reads"),
        ("{", IntegrityError, "not valid JSON"),
        ("", IntegrityError, "not valid JSON"),
    ],
)
def test_a_record_of_another_kind(tmp_path: Path, text: str, error: type[Exception], says: str) -> None:
    folder = sealed(tmp_path / "demo-abc")
    (folder / RECORD_FILE).write_text(text)
    with pytest.raises(error, match=says):
        Release.open(str(folder))


@pytest.mark.parametrize("name", ["name", "version", "fingerprint", "splits", "files"])
def test_a_record_that_lacks_something_names_it(tmp_path: Path, name: str) -> None:
    folder = sealed(tmp_path / "demo-abc")
    record = json.loads((folder / RECORD_FILE).read_text())
    for wrong in (None, 3):
        (folder / RECORD_FILE).write_text(json.dumps({**record, name: wrong}))
        with pytest.raises(IntegrityError, match=rf"not a whole record, {name} missing"):
            Release.open(str(folder))
    del record[name]
    (folder / RECORD_FILE).write_text(json.dumps(record))
    with pytest.raises(IntegrityError, match=rf"not a whole record, {name} missing"):
        Release.open(str(folder))


def test_a_split_without_shards_is_no_split(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "demo-abc", splits={"train": {"num_samples": 3}})
    with pytest.raises(IntegrityError, match=r"not a whole record, splits missing or of another kind"):
        Release.open(str(folder))


def test_a_shard_that_is_not_among_the_files_is_named(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "demo-abc")
    record = json.loads((folder / RECORD_FILE).read_text())
    del record["files"]["heldout/demo-heldout-000000.tar"]
    (folder / RECORD_FILE).write_text(json.dumps(record))
    with pytest.raises(IntegrityError, match=r"1 of 3 shards .*first: heldout/demo-heldout-000000\.tar"):
        Release.open(str(folder))


def test_opens_from_an_object_store(tmp_path: Path) -> None:
    import fsspec

    folder = sealed(tmp_path / "demo-abc")
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), f"/{tmp_path.name}/demo-abc", recursive=True)
    release = Release.open(f"memory://{tmp_path.name}/demo-abc")
    assert release.samples("heldout").num_rows == 1
    assert [*release.wrong_hashes(), *release.unknown_files()] == []
    memory.rm(f"/{tmp_path.name}/demo-abc/shards/demo-000000.tar")
    with pytest.raises(IntegrityError, match="is missing"):
        Release.open(f"memory://{tmp_path.name}/demo-abc")


def test_a_small_file_of_a_release_counts_as_it_was_sealed(tmp_path: Path) -> None:
    """One of the same size would pass for it; a ratio of other samples would be published."""
    sealed_bytes, other = b'{"law": 1}', b'{"law": 2}'
    files = {"mixture.json": {"num_bytes": 10, "sha256": hashlib.sha256(sealed_bytes).hexdigest()}}
    folder = sealed(tmp_path / "demo-abc", splits={}, files=files)
    (folder / "mixture.json").write_bytes(sealed_bytes)
    assert read_json(Release.open(str(folder)), "mixture.json") == {"law": 1}
    (folder / "mixture.json").write_bytes(other)
    with pytest.raises(IntegrityError, match=r"mixture\.json: other content than when it was sealed"):
        read_json(Release.open(str(folder)), "mixture.json")
