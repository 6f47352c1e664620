"""What a score rule blurs or flags: in the shards alone, told in json, the same bytes by any way."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from building import ROOT, done, folder_source, release_of, run_here, write_small_config
from PIL import Image
from sealed import lend, unwritten

from manifests.contract.reader import open_reader
from manifests.contract.release import Release

SCORER = {"name": "middle", "scorer": "own_scorer:Middle"}
LEAST = 0.5  # of brightness


@pytest.fixture(autouse=True, scope="module")
def own_module() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tests/unit/pipeline/scoring"))
        yield


@pytest.fixture(scope="module")
def sealed(own_module: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Pictures (`pictures/`) and the build that blurs them (`work/`): to change anything, take what `lend` gives."""
    folder = tmp_path_factory.mktemp("blurred")
    (pictures := folder / "pictures").mkdir()
    for photo in sorted((ROOT / "tests/photos").glob("*.jpg"))[:8]:
        (pictures / photo.name).write_bytes(photo.read_bytes())
        photo_text = photo.stem.replace("-", " ")
        (pictures / f"{photo.stem}.txt").write_text(f"a photo of {photo_text} on a table")
    _build(_config(folder, pictures))
    with unwritten(folder):
        yield folder


def _config(folder: Path, pictures: Path, action: str = "blur", name: str = "blur", **sections: Any) -> Path:
    source = folder_source(pictures)
    source["folder"]["captions"] = "text_file"
    rule = {"scorer": "middle", "max_score": LEAST, "action": action}
    sections = {"pack": {"samples_per_shard": 3}, **sections}
    return write_small_config(folder, source, name=name, score={"plugins": [SCORER], "rules": [rule]}, **sections)


def _build(config: Path) -> Release:
    done("build", config)
    releases = config.parent / "work/releases"
    return Release.open(str(releases / (releases / f"{config.stem}.LATEST").read_text().strip()))


def _newest(folder: Path) -> Release:
    return Release.open(str(release_of(folder / "work")))


def _samples(release: Release) -> dict[str, dict[str, Any]]:
    samples: dict[str, dict[str, Any]] = {}
    for shard in release.shards("train"):
        with tarfile.open(release.shard_path("train", shard)) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                samples.setdefault(key, {})[kind] = tar.extractfile(member).read()
    return samples


def _stored(work: Path) -> dict[str, bytes]:
    with open_reader(str(work)) as sql:
        rows = sql.sql('SELECT sample_id, pool_file, "offset", length FROM facts').fetchall()
    return {one: (work / "pool" / file).read_bytes()[offset : offset + length] for one, file, offset, length in rows}


def test_boxes_above_the_threshold_are_blurred_in_the_shards_alone(sealed: Path) -> None:
    release, work = _newest(sealed), sealed / "work"
    stored = _stored(work)
    with open_reader(str(work)) as sql:
        scores = dict(sql.sql("SELECT sample_id, score FROM scores").fetchall())
        marked = dict(sql.sql("SELECT sample_id, len(blur) FROM marks").fetchall())
    bright = {one for one, score in scores.items() if score > LEAST}
    assert 0 < len(bright) < len(scores) == 8
    assert marked == dict.fromkeys(bright, 1)
    rows = {row["key"]: row for row in pq.read_table(f"{release.path}/samples.parquet").to_pylist()}
    for key, members in _samples(release).items():
        original, packed = stored[key], members["jpg"]
        row = rows[key]
        assert row["stored_sha256"] == hashlib.sha256(original).hexdigest()
        assert row["jpg_length"] == len(packed)
        if key not in bright:
            assert (packed, row["packed_sha256"], json.loads(members["json"])["marks"]) == (original, None, "")
            continue
        assert json.loads(members["json"])["marks"] == row["marks"] == "middle:blurred"
        assert row["packed_sha256"] == hashlib.sha256(packed).hexdigest()
        was, now = (np.asarray(Image.open(io.BytesIO(body)).convert("L"), float) for body in (original, packed))
        assert was.shape == now.shape
        high, wide = was.shape
        middle = np.s_[high // 4 : -high // 4, wide // 4 : -wide // 4]
        edges = [np.abs(np.diff(each[middle])).mean() for each in (was, now)]
        assert edges[1] < edges[0] / 2, "nothing sharp is left"
        corner = np.s_[: high // 8, : wide // 8]
        assert np.abs(was[corner] - now[corner]).mean() < 2, "the rest is as it was"
    for told in (run_here("verify", release.path), run_here("verify", work)):
        assert told.returncode == 0, told.stderr
    (one,) = list(bright)[:1]
    assert "packed as middle:blurred (1 boxes blurred)" in run_here("explain", work, one).stdout
    card = Path(release.path, "README.md").read_text()
    assert f"Score rules marked {len(bright)} images `middle:blurred`: parts of them are blurred" in card


@pytest.mark.slow
def test_the_same_bytes_by_other_workers_by_repair_and_after_a_takedown(sealed: Path, tmp_path: Path) -> None:
    run = {"executor": "processes", "num_workers": 2, "fetch_part_size": 2}
    again = _build(_config(tmp_path, sealed / "pictures", run=run))
    release = _newest(lend(sealed, tmp_path / "lent"))
    assert again.name == release.name
    assert again.record["files"] == release.record["files"]

    shard = Path(release.shard_path("train", release.shards("train")[0]))
    sealed = shard.read_bytes()
    shard.unlink()
    done("repair", tmp_path / "lent/work")
    assert shard.read_bytes() == sealed

    gone = next(row for row in pq.read_table(f"{release.path}/samples.parquet").to_pylist() if row["packed_sha256"])
    done("takedown", release.path, "--id", gone["sample_id"], "--reason", "asked")
    smaller = _newest(tmp_path / "lent")
    assert gone["key"] not in _samples(smaller)
    done("verify", smaller.path)


def test_another_action_or_threshold_packs_anew_and_scores_nothing(sealed: Path, tmp_path: Path) -> None:
    folder = lend(sealed, tmp_path / "lent")
    blurred, measured = _newest(folder), "SELECT part_key FROM parts WHERE step = 'measure' ORDER BY 1"
    with open_reader(str(folder / "work")) as sql:
        parts = sql.sql(measured).fetchall()
        num = sql.sql("SELECT count(*) FROM marks").fetchall()[0][0]
    flagged = _build(_config(folder, sealed / "pictures", "flag", name="flag"))
    with open_reader(str(folder / "work")) as sql:
        assert sql.sql(measured).fetchall() == parts
    stored, marks = _stored(folder / "work"), set()
    for key, members in _samples(flagged).items():
        assert members["jpg"] == stored[key], "a flag changes no picture"
        marks.add(json.loads(members["json"])["marks"])
    assert marks == {"", "middle:flagged"}
    told = json.loads(run_here("diff", flagged.path, blurred.path, "--json").stdout)
    assert [row["image"] for row in told["domains"]] == [num]


def test_pictures_without_a_caption_are_blurred_as_well(sealed: Path, tmp_path: Path) -> None:
    """No rule asks for a caption. One of the packed pictures has a joined text of another kind, the others none."""
    pictures = lend(sealed / "pictures", tmp_path / "pictures")
    for text in pictures.glob("*.txt"):
        text.write_text("")
    (tmp_path / "traits.jsonl").write_text(json.dumps({"key": min(pictures.glob("*.jpg")).name, "trait": "red skin"}))
    config = _config(tmp_path, pictures, caption={"rules": [{}], "text": {"choices": [{"any_of": ["trait"]}]}})
    values = yaml.safe_load(config.read_text())
    trait = {"join": "traits.jsonl", "on": {"record_key": "key"}, "text": "trait", "kind": "trait"}
    values["sources"][0]["captions"] = [trait]
    config.write_text(yaml.safe_dump(values))
    samples = _samples(_build(config)).values()
    assert sorted(members["txt"] for members in samples) == [b""] * 7 + [b"red skin"]
    with open_reader(str(tmp_path / "work")) as sql:
        ((num,),) = sql.execute("SELECT count(*) FROM scores WHERE score > $1", [LEAST]).fetchall()
    assert 0 < num == sum(json.loads(members["json"])["marks"] == "middle:blurred" for members in samples)
