"""Evaluation sets over real photos: copies of them in the sources leak and are dropped, clean photos stay."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from building import photos_config
from hashed_pairs import look_of, pairs_of
from PIL import Image, ImageOps
from running import do_part

from manifests.contract import tables
from manifests.contract.catalog import Catalog
from manifests.contract.reader import open_reader, read_status
from manifests.errors import ConfigError
from pipeline.answers.lives import find_lives
from pipeline.answers.preflight import check_config
from pipeline.commands.explain import describe_life
from pipeline.commands.status import describe_status
from pipeline.config import BuildConfig
from pipeline.engine.runner import BuildReport, Runner
from pipeline.flow import FLOW
from pipeline.stages.dedup.stage import STAGE
from pipeline.store.files import Files

PHOTOS = sorted((Path(__file__).parents[1] / "photos").glob("*.jpg"))
EVALUATED, CLEAN = PHOTOS[:12], PHOTOS[12:]
WAYS = ("exact", "encoded", "resized", "mirrored")


def plant(photo: Path, way: str, folder: Path) -> None:
    """A copy of a photo as a re-uploader makes it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{way}_{photo.name}"
    picture = Image.open(photo).convert("RGB")
    if way == "exact":
        shutil.copy(photo, path)
    elif way == "encoded":
        picture.save(path.with_suffix(".webp"), quality=70)
    elif way == "resized":
        picture.resize((picture.width * 2 // 3, picture.height * 2 // 3)).save(path, quality=80)
    else:
        ImageOps.mirror(picture).save(path, quality=85)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for place, photo in enumerate(EVALUATED):
        plant(photo, WAYS[place % 4], root / "source")
        plant(photo, "exact", root / "set")
    for photo in CLEAN:
        plant(photo, "exact", root / "source")
    with tarfile.open(root / "set.tar", "w") as tar:
        for photo in EVALUATED:
            tar.add(photo, photo.name)
    return root


def config_of(pictures: Path, workdir: Path, evaluation: Sequence[dict[str, Any]], **changes: Any) -> BuildConfig:
    return photos_config(pictures / "source", workdir, evaluation=list(evaluation), **changes)


def build(config: BuildConfig) -> BuildReport:
    check_config(config)
    with Catalog.open(config.work_dir) as catalog:
        return Runner(config, FLOW, catalog).run()


def dropped(workdir: Path) -> dict[str, tuple[str, str]]:
    """Record key of every leak -> (member of the set, how it was matched)."""
    with open_reader(str(workdir)) as sql:
        rows = sql.execute(
            "SELECT record_key, d.evaluation_member, matched FROM decisions d JOIN candidates USING (sample_id) "
            "JOIN leaks USING (sample_id) WHERE reason = 'eval_leak'"
        ).fetchall()
    return {key: (member, matched) for key, member, matched in rows}


def part_steps(workdir: Path) -> list[str]:
    with Catalog.open(str(workdir)) as catalog:
        rows = catalog._connection.execute("SELECT step FROM parts WHERE stage = 'dedup' ORDER BY committed_at")
        return [row[0] for row in rows.fetchall()]


@pytest.fixture(scope="module")
def built(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildReport]:
    workdir = tmp_path_factory.mktemp("built")
    report = build(config_of(pictures, workdir, [{"name": "held", "folder": {"path": str(pictures / "set")}}]))
    return workdir, report


def test_every_copy_is_dropped_and_no_clean_photo(built: tuple[Path, BuildReport]) -> None:
    workdir, report = built
    matched = {"exact": {"bytes"}, "encoded": {"near"}, "resized": {"near"}, "mirrored": {"mirrored"}}
    leaks = dropped(workdir)
    assert len(leaks) == len(EVALUATED)
    for key, (member, how) in leaks.items():
        way, _, name = key.partition("_")
        assert Path(member).stem == f"exact_{Path(name).stem}"
        assert how in matched[way]
    funnel = report.stages["select"].funnel
    assert (funnel.num_kept, dict(funnel.reasons)) == (len(CLEAN), {"eval_leak": len(EVALUATED)})


def test_the_record_says_what_was_kept_out(built: tuple[Path, BuildReport]) -> None:
    workdir, report = built
    (said,) = json.loads((workdir / str(report.release) / "release.json").read_text())["evaluation"]
    assert said["name"] == "held"
    assert (said["radius"], said["mirrored"]) == (4, True)
    assert (said["num_images"], said["num_measured"], said["num_unreadable"]) == (12, 12, 0)
    assert (said["num_leaks"], said["leaks"]) == (12, {"bytes": 3, "mirrored": 3, "near": 6})


def test_explain_and_status_tell_of_leaks(built: tuple[Path, BuildReport]) -> None:
    workdir, _ = built
    key = next(key for key in dropped(workdir) if key.startswith("mirrored"))
    with open_reader(str(workdir)) as sql:
        (life,) = find_lives(sql, key)
    lines = describe_life(life)
    assert any("DROPPED: eval_leak (pHash distance" in line and "to the mirror image" in line for line in lines)
    assert lines[-1].endswith(f"exact_{Path(key).name.partition('_')[2]} of the evaluation set held")
    status = describe_status(read_status(str(workdir)))
    assert any(line.startswith("held ") and "3 bytes, 3 mirrored, 6 near" in line for line in status)


@pytest.mark.slow
def test_another_radius_measures_nothing(built: tuple[Path, BuildReport], pictures: Path) -> None:
    workdir, _ = built
    before = part_steps(workdir)
    held = {"name": "held", "folder": {"path": str(pictures / "set")}, "radius": 0}
    report = build(config_of(pictures, workdir, [held]))
    assert report.redone[0] == "dedup"
    new = part_steps(workdir)[len(before) :]
    assert sorted(new) == ["leaks"]
    leaks = dropped(workdir)
    assert sum(how == "bytes" for _, how in leaks.values()) == 3


@pytest.mark.slow
def test_a_webdataset_serves_as_set(pictures: Path, tmp_path: Path) -> None:
    report = build(config_of(pictures, tmp_path, [{"name": "tars", "webdataset": {"path": str(pictures / "set.tar")}}]))
    assert report.stages["select"].funnel.reasons == {"eval_leak": len(EVALUATED)}


@pytest.mark.slow
def test_names_match_without_pictures(pictures: Path, tmp_path: Path) -> None:
    keys = [f"mirrored_{EVALUATED[3].name}", CLEAN[0].stem, "of-nothing"]
    table = pa.table({"key": keys, "url": [f"https://example.org/{key}" for key in keys]})
    pq.write_table(table, tmp_path / "names.parquet")
    listed = {
        "name": "listed",
        "table": str(tmp_path / "names.parquet"),
        "columns": {"url": "url", "caption": [], "record_key": "key"},
    }
    with pytest.raises(ValueError, match="matched by name alone: set match_names"):
        config_of(pictures, tmp_path / "work", [listed])
    build(config_of(pictures, tmp_path / "work", [listed | {"match_names": True}]))
    assert dropped(tmp_path / "work") == {keys[0]: (keys[0], "record_key")}


def test_a_set_that_cannot_be_read_ends_the_build(pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures / "set", tmp_path / "set")
    (tmp_path / "set/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    held = {"name": "held", "folder": {"path": str(tmp_path / "set")}}
    with pytest.raises(ConfigError, match=r"evaluation\.held: 1 of 13 images cannot be read.*broken.jpg.*report"):
        build(config_of(pictures, tmp_path / "work", [held]))
    report = build(config_of(pictures, tmp_path / "work", [held | {"unreadable": "report"}]))
    (said,) = report.stages["dedup"].notes["evaluation"]
    assert (said["num_unreadable"], said["num_leaks"]) == (1, 12)
    shutil.rmtree(tmp_path / "set")
    with pytest.raises(ConfigError, match=r"evaluation\.held: .*no such folder"):
        build(config_of(pictures, tmp_path / "work", [held]))


# ---- what leaks, on tables by hand


def leaks_of(tmp_path: Path, pool: dict[str, int], shown: dict[str, int], **extra: Any) -> list[dict[str, Any]]:
    """Leaks of a pool (sample id -> pHash) that shows images of one set (member -> pHash); radius 6, duplicates 4."""
    flat = extra.get("flat", ())
    schemas = {"facts": tables.FACTS, "evaluation": tables.EVALUATION}
    rows: dict[str, list[dict[str, Any]]] = {
        "facts": [
            {
                "sample_id": key,
                "outcome": "ok",
                "phash": value,
                "middle_hash": extra.get("middles", {}).get(key, 0),
                "image_id": extra.get("bytes", {}).get(key, key),
                "pixels_sha256": key,
                "pixel_std": 0.5 if key in flat else 50.0,
            }
            for key, value in pool.items()
        ],
        "evaluation": [
            {
                "evaluation_set": "set",
                "member": key,
                "url": extra.get("urls", {}).get(key),
                "outcome": "ok",
                "image_id": key,
                "pixels_sha256": key,
                "phash": value,
                "phash_mirrored": value ^ (2**64 - 1),
                "middle_hash": 0,
                "middle_mirrored": 0,
                "pixel_std": 0.5 if key in flat else 50.0,
            }
            for key, value in shown.items()
        ],
    }
    pq.write_table(pairs_of(np.array(list(pool.values()), np.uint64), look=look_of), tmp_path / "pairs.parquet")
    for name, schema in schemas.items():
        pq.write_table(pa.Table.from_pylist(rows[name], schema=schema), tmp_path / f"{name}.parquet")
    candidates = [{"sample_id": key, "url": extra["urls"].get(key)} for key in pool] if "urls" in extra else []
    pq.write_table(pa.Table.from_pylist(candidates, schema=tables.CANDIDATES), tmp_path / "candidates.parquet")
    files = {name: Files((str(tmp_path / f"{name}.parquet"),)) for name in (*schemas, "candidates", "pairs")}
    sets = [{"name": "set", "radius": 6, "mirrored": True}]
    result = do_part(STAGE, "leaks", tmp_path, **files, sets=tuple(sets), named=extra.get("named", ()))
    return pq.read_table(result.files[0].temp).to_pylist()


BASE = 0x0F0F_3C3C_5A5A_9966


def test_a_duplicate_of_a_leak_leaks_with_it(tmp_path: Path) -> None:
    # b is 6 bits from the set's image; c is 4 from b but 10 from the image; d is 4 from c, and stays
    b, c, d = BASE ^ 0x3F, BASE ^ 0x3FF, BASE ^ 0x3FFF
    leaks = leaks_of(tmp_path, {"b": b, "c": c, "d": d}, {"image": BASE})
    assert [(row["sample_id"], row["matched"], row["distance"], row["via_sample_id"]) for row in leaks] == [
        ("b", "near", 6, None),
        ("c", "duplicate", 4, "b"),
    ]
    assert {row["evaluation_member"] for row in leaks} == {"image"}


def test_a_duplicate_of_a_mirror_image_leaks_with_it(tmp_path: Path) -> None:
    turned = BASE ^ (2**64 - 1)
    leaks = leaks_of(tmp_path, {"b": turned ^ 0x3F, "c": turned ^ 0x3FF}, {"image": BASE})
    assert [(row["sample_id"], row["matched"], row["distance"], row["via_sample_id"]) for row in leaks] == [
        ("b", "mirrored", 6, None),
        ("c", "duplicate", 4, "b"),
    ]


def test_a_set_that_is_matched_by_names_knows_a_photo_in_any_size(tmp_path: Path) -> None:
    photo = "https://inaturalist-open-data.s3.amazonaws.com/photos/{}.jpg"
    urls = {"small": photo.format("12/small"), "other": photo.format("123/small"), "image": photo.format("12/original")}
    pool, shown = {"small": BASE, "other": BASE}, {"image": BASE ^ (2**64 - 1) ^ 0xFFFF}
    leaks = leaks_of(tmp_path, pool, shown, urls=urls, named=(("set", 1),))
    assert {row["sample_id"]: row["matched"] for row in leaks}["small"] == "url"
    assert not leaks_of(tmp_path, pool, shown, urls=urls), "without names nothing is the same"


def test_a_sheet_of_the_same_layout_is_no_leak(tmp_path: Path) -> None:
    leaks = leaks_of(tmp_path, {"sheet": BASE, "copy": BASE}, {"image": BASE}, middles={"sheet": 0xFF})
    assert [row["sample_id"] for row in leaks] == ["copy"]


def test_the_nearest_evidence_is_told(tmp_path: Path) -> None:
    pool = {"same": BASE, "one": BASE ^ 1, "turned": BASE ^ (2**64 - 1) ^ 1, "other": BASE ^ 0xFFFF}
    leaks = leaks_of(tmp_path, pool, {"image": BASE, "near": BASE ^ 3}, bytes={"same": "near"})
    told = {row["sample_id"]: (row["evaluation_member"], row["matched"], row["distance"]) for row in leaks}
    assert told == {"same": ("near", "bytes", None), "one": ("image", "near", 1), "turned": ("image", "mirrored", 1)}


def test_pictures_of_one_colour_match_by_bytes_alone(tmp_path: Path) -> None:
    pool = {"blank": BASE, "other blank": BASE}
    leaks = leaks_of(tmp_path, pool, {"white": BASE}, flat=("blank", "white"), bytes={"blank": "white"})
    assert [(row["sample_id"], row["matched"]) for row in leaks] == [("blank", "bytes")]
