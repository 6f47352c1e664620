"""Parquet with pictures inside: read once, in pieces, from a disk, the web or the Hub; known by its content."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from building import ROOT, done, release_of, run_here, write_small_config
from crawling import open_image_index
from foreign_tars import picture
from ingested import NUM, build, versions
from misbehaving.hub import Repository, StoredFile, fake_hub, use_hub
from misbehaving.object_store import BUCKET, become_user, serving
from picture_tables import IMAGE, NAMES, table_of, write
from PIL import Image
from range_server import RangeServer, serving_ranges
from waiting import wait_until

from manifests.contract.catalog import Catalog
from manifests.contract.reader import open_reader
from manifests.contract.release import Release
from pipeline.browse.evaluation import EvaluationPictures
from pipeline.sources.tars import front_to_back
from pipeline.stages.ingest import tars as ingest_tars


@pytest.fixture(autouse=True, scope="module")
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manifests.stores.faults.WAITS_SECONDS", (0.01, 0.01))
        patch.setattr("pipeline.sources.tars.picture_rows.RANGE_BYTES", 2 << 10)
        patch.setattr(ingest_tars, "PIECE_BYTES", 8 << 10)
        yield


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with serving_ranges() as served:
        yield served


def config_of(folder: Path, path: Path | str, work: str = "work", columns: Any = None, **sections: Any) -> Path:
    source = {
        "name": "hub",
        "domain": "plant",
        "defaults": {"licence": "CC0-1.0"},
        "parquet": {"path": str(path), "columns": columns or {"caption": "caption"}},
    }
    run = {"max_attempts": 2, "retry_wait_seconds": 0.01, **sections.pop("run", {})}
    return write_small_config(folder, source, name=work, work_dir=str(folder / work), run=run, **sections)


def rows_of(workdir: Path) -> dict[str, list[Any]]:
    """Record key -> caption, and what was fetched."""
    with open_reader(str(workdir)) as sql:
        asked = "caption, row_number, outcome, image_id, stored_sha256, locator"
        query = f"SELECT record_key, {asked} FROM candidates JOIN facts USING (sample_id)"
        return {key: rest for key, *rest in sql.execute(query).fetchall()}


def rejects_of(workdir: Path) -> list[tuple[Any, ...]]:
    with open_reader(str(workdir)) as sql:
        return sql.execute("SELECT record_key, reason, value FROM rejects ORDER BY row_number").fetchall()


def fetched_parts(workdir: Path) -> list[Any]:
    with Catalog.open(str(workdir)) as catalog:
        return catalog.ask("SELECT key FROM parts WHERE stage = 'fetch' AND step = 'local'")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Any]]]:
    """A file of this machine, and what a build makes of it."""
    folder = tmp_path_factory.mktemp("here")
    write(folder / "set/a.parquet", table_of(range(NUM)))
    build(config_of(folder, folder / "set"))
    return folder, rows_of(folder / "work")


def test_a_file_is_read_once_in_pieces_and_every_picture_is_there(here: tuple[Path, dict[str, list[Any]]]) -> None:
    folder, rows = here
    assert sorted(rows, key=lambda key: int(key[2:])) == [f"a/{number}" for number in range(NUM)]
    for number in range(NUM):
        caption, row_number, outcome, image_id, _, locator = rows[f"a/{number}"]
        body = picture(number)
        assert (row_number, outcome, image_id) == (number, "ok", hashlib.sha256(body).hexdigest())
        assert (caption, locator) == (f"a picture with the number {number}", f"a.parquet@{number + 1}+{len(body)}")
    with Catalog.open(str(folder / "work")) as catalog:
        pieces = catalog.parts_like("ingest", "tars")
        assert len(pieces) > 2
        assert not catalog.parts_like("fetch", "local"), "the pictures were measured as they went by"
    said = build(folder / "work.yaml")
    assert "ingest: reused" in said
    assert "fetch: reused" in said


def test_a_copy_elsewhere_is_the_same_data_set(here: tuple[Path, dict[str, list[Any]]], tmp_path: Path) -> None:
    folder, rows = here
    shutil.copytree(folder, tmp_path / "copy")
    config = config_of(tmp_path / "copy", tmp_path / "copy/set/a.parquet")
    before = versions(folder / "work")
    said = build(config)
    assert "ingest: reused" in said, "read once to know it"
    assert "fetch: reused" in said
    assert versions(tmp_path / "copy/work") == before
    build(other := config_of(tmp_path, folder / "set/{a..a}.parquet", "other"))
    assert versions(tmp_path / "other") == before, "no fingerprint saw a path or a time"
    assert rows_of(tmp_path / "other") == rows
    assert other.is_file()


def test_a_bucket_gives_what_a_disk_gives(
    here: tuple[Path, dict[str, list[Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rows = here
    with serving() as store:
        become_user(store, monkeypatch)
        fs = fsspec.filesystem("s3", **store.options)
        fs.pipe_file(f"{BUCKET}/set/a.parquet", (folder / "set/a.parquet").read_bytes())
        left = ["expired_403"]
        store.choose = lambda method, path: left.pop() if left and "a.parquet" in path else None
        build(config_of(tmp_path, f"s3://{BUCKET}/set"))
        assert not left
    assert rows_of(tmp_path / "work") == rows
    assert versions(tmp_path / "work") == versions(folder / "work")


def test_a_file_that_changes_between_two_builds_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table_of(range(12)))
    config = config_of(tmp_path, path)
    build(config)
    write(path, table_of([0, 1, 2, 50, *range(4, 14)]))
    build(config)
    rows = rows_of(tmp_path / "work")
    assert len(rows) == 14
    assert rows["a/3"][2:4] == ["ok", hashlib.sha256(picture(50)).hexdigest()]
    assert {row[2] for row in rows.values()} == {"ok"}


def test_other_sizes_and_columns_read_no_picture_twice_in_vain(
    here: tuple[Path, dict[str, list[Any]]], tmp_path: Path
) -> None:
    folder, _ = here
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy2)
    config = config_of(tmp_path / "copy", tmp_path / "copy/set")
    build(config)
    columns = {"caption": "caption", "taxon_scientific_name": "label", "extra": ["image.path"]}
    config_of(tmp_path / "copy", tmp_path / "copy/set", columns=columns)
    assert "fetch: reused" in build(config)
    with open_reader(str(tmp_path / "copy/work")) as sql:
        named = sql.execute("SELECT DISTINCT taxon_scientific_name FROM candidates ORDER BY 1").fetchall()
    assert [name for (name,) in named] == sorted(NAMES)
    config_of(tmp_path / "copy", tmp_path / "copy/set", columns=columns, fetch={"image": {"size_px": 32}})
    build(config)
    rows = rows_of(tmp_path / "copy/work")
    assert {row[2] for row in rows.values()} == {"ok"}
    assert [row[3] for row in rows.values()] == [hashlib.sha256(picture(int(key[2:]))).hexdigest() for key in rows]


def test_odd_pictures_end_one_by_one(tmp_path: Path) -> None:
    odd = [b"", b"<html>gone</html>", picture(2)[:200], picture(3), None, b"\0" * 3000]
    images = pa.array([{"bytes": body, "path": f"{n}.jpg"} for n, body in enumerate(odd)], IMAGE)
    table = table_of(range(6)).set_column(0, "image", images)
    build(config_of(tmp_path, write(tmp_path / "a.parquet", table), fetch={"image": {"max_body_bytes": 2900}}))
    rows = rows_of(tmp_path / "work")
    assert {key: row[2] for key, row in rows.items()} == {
        "a/0": "empty_body", "a/1": "not_an_image", "a/2": "corrupt_image", "a/3": "ok", "a/5": "body_too_large",
    }  # fmt: skip
    assert rejects_of(tmp_path / "work") == [("a/4", "no_image", "image has no bytes, only the path 4.jpg")]


def test_a_damaged_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "0.parquet", table_of(range(15)), compression="none", use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset : chunk.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(content)
    write(tmp_path / "1.parquet", table_of(range(15, 20))).write_bytes(b"PAR1 no footer")
    build(config_of(tmp_path, tmp_path / "*.parquet"))
    rows = rows_of(tmp_path / "work")
    assert set(rows) == {f"0/{number}" for number in (*range(5), *range(10, 15))}
    *lost, broken = rejects_of(tmp_path / "work")
    assert [(key, reason) for key, reason, _ in lost] == [(f"0/{number}", "no_image") for number in range(5, 10)]
    assert all(value.startswith("image cannot be read, since its row group is damaged") for *_, value in lost)
    assert broken[1] == "broken_shard"
    assert broken[2].startswith("1.parquet: has no footer")


def test_cut_data_pages_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "1.parquet", table_of(range(15)))
    content = path.read_bytes()
    path.write_bytes(content[:4] + content[2004:])
    write(tmp_path / "0.parquet", table_of(range(20, 25)))
    build(config_of(tmp_path, tmp_path / "*.parquet"))
    assert len(rows_of(tmp_path / "work")) == 5
    ((_, reason, value),) = rejects_of(tmp_path / "work")
    assert reason == "broken_shard"
    assert value.startswith("1.parquet: is shorter than its footer says")


def test_zero_rows_are_said(tmp_path: Path) -> None:
    config = config_of(tmp_path, write(tmp_path / "a.parquet", table_of([])))
    assert "the tables are empty" in build(config, 1)


def test_the_web_gives_its_files_and_a_build_goes_on_behind_the_last_piece(
    server: RangeServer, tmp_path: Path, here: tuple[Path, dict[str, list[Any]]]
) -> None:
    content = (here[0] / "set/a.parquet").read_bytes()
    server.put("a.parquet", content)
    config = config_of(tmp_path, f"{server.address}/a.parquet")
    end = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    server.choose = lambda name, start: 503 if end * 0.75 < start < end else None
    assert "a.parquet cannot be read now" in build(config, 1)
    with Catalog.open(str(tmp_path / "work")) as catalog:
        committed = max(piece.notes["stop"] for piece in catalog.parts_like("ingest", "tars"))
    assert committed > end * 0.3
    server.choose = lambda name, start: None
    server.asked.clear()
    build(config)
    in_the_middle = [start for _, start, _ in server.asked if 100 < start < committed - 6000]
    assert not in_the_middle, "of what is committed at most a row group is read again"
    assert rows_of(tmp_path / "work") == here[1]
    server.asked.clear()
    assert "ingest: reused" in build(config)
    assert not [start for _, start, _ in server.asked if start], "footers alone, which of a small file are all of it"


SLOWLY = """
import sys, time
from pipeline.cli import main
from pipeline.stages.ingest import tars as ingest_tars
ingest_tars.PIECE_BYTES, measure = 8 << 10, ingest_tars.measure_image
ingest_tars.measure_image = lambda *arguments: time.sleep(0.3) or measure(*arguments)
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_build_keeps_its_pieces(tmp_path: Path, here: tuple[Path, dict[str, list[Any]]]) -> None:
    shutil.copytree(here[0] / "set", tmp_path / "set")
    config = config_of(tmp_path, tmp_path / "set")
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, "build", str(config), "--to", "fetch"])
    # when the second is there, the first is committed
    wait_until(lambda: len(list((tmp_path / "work/tables/ingest").glob("samples-*.parquet"))) >= 2, process)
    process.kill()
    process.wait()

    def pieces() -> dict[str, int]:
        with Catalog.open(str(tmp_path / "work")) as catalog:
            return {piece.key: piece.notes["start"] for piece in catalog.parts_like("ingest", "tars")}

    before = pieces()
    assert before
    build(config)
    after = pieces()
    assert after.items() > before.items()
    assert len(set(after.values())) == len(after), "nothing is kept twice"
    assert rows_of(tmp_path / "work") == here[1]


def test_an_estimate_reads_no_picture(server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.parquet.HEAD_ROWS", 6)
    for number in range(2):
        write(tmp_path / f"{number}.parquet", table_of(range(NUM * number, NUM * number + NUM)))
        server.put(f"{number}.parquet", (tmp_path / f"{number}.parquet").read_bytes())
    said = done("estimate", config_of(tmp_path, f"{server.address}/{{0..1}}.parquet"))
    num = int(said.partition(" pictures of ")[0].splitlines()[-1])
    assert 0.7 < num / (2 * NUM) < 1.3
    assert "lie in 2 files of" in said
    said = done("estimate", config_of(tmp_path, tmp_path / "{0..1}.parquet"))
    assert f"{2 * NUM} pictures of" in said
    assert "are on this machine" in said
    told = json.loads(done("preview", config_of(tmp_path, tmp_path / "{0..1}.parquet"), "--json"))
    assert 0 < told["kept"]["num"] <= 2 * NUM


@pytest.mark.slow
def test_no_row_group_is_held_whole(tmp_path: Path) -> None:
    bodies = [bytes([number]) * 50_000 for number in range(120)]
    path = write(tmp_path / "a.parquet", pa.table({"image": bodies}), row_group_size=120, data_page_size=1 << 16,
                 write_batch_size=4, compression="none", use_dictionary=False)  # fmt: skip
    asked: list[int] = []

    class Watched(front_to_back.InAnyOrder):
        def read(self, num_bytes: int) -> bytes:
            asked.append(num_bytes)
            return super().read(num_bytes)

    num_bytes = path.stat().st_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.sources.tars.picture_rows.InAnyOrder", Watched)
        build(config_of(tmp_path, path, columns={"image": "image"}), last="ingest")
    assert num_bytes < sum(asked) < 1.2 * num_bytes, "read once"
    assert max(asked) < num_bytes / 20


# ---- the Hub


def photos() -> list[tuple[str, bytes]]:
    """30 photos that are not alike, and what they show."""
    shown = []
    for turn in (None, Image.Transpose.ROTATE_90):
        for path in sorted((ROOT / "tests/photos").glob("*.jpg")):
            image = Image.open(path)
            (image if turn is None else image.transpose(turn)).save(stream := io.BytesIO(), "JPEG", quality=90)
            shown.append((path.stem.replace("-", " "), stream.getvalue()))
    return shown


def hub_table(some: list[tuple[str, bytes]]) -> pa.Table:
    images = pa.array([{"bytes": body, "path": f"{name}.jpg"} for name, body in some], IMAGE)
    captions = [f"a photo of {name} on a wooden table in the kitchen, {n}" for n, (name, _) in enumerate(some)]
    return table_of(range(len(some)), caption=captions).set_column(0, "image", images)


@pytest.mark.slow
def test_the_recipe_for_a_set_of_the_hub_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = photos()
    splits = {"train-00000-of-00002": shown[:14], "train-00001-of-00002": shown[14:], "test-00000-of-00001": shown[3:5]}
    files = {}
    for stem, some in splits.items():
        content = write(tmp_path / f"{stem}.parquet", hub_table(some)).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        files[f"data/{stem}.parquet"] = StoredFile(sha256, len(content), content, True)
    (tmp_path / "configs/pipeline").mkdir(parents=True)
    config = tmp_path / "configs/pipeline/hub-dataset.yaml"
    values = yaml.safe_load((ROOT / "configs/pipeline/hub-dataset.yaml").read_text(encoding="utf-8"))
    values["run"]["executor"] = "inline"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    with fake_hub() as hub:
        use_hub(hub, monkeypatch)
        hub.repositories["datasets/OWNER/NAME"] = Repository(False, files, [sorted(files)])
        done("build", config)
        told = done("explain", tmp_path / "data/hub-dataset", "train-00000-of-00002/3")
    assert "eval_leak" in told
    assert "hub-test" in told
    release = Release.open(str(release_of(tmp_path / "data/hub-dataset")))
    rows = pa.concat_tables([release.samples("train"), release.samples("heldout")]).to_pylist()
    assert len(rows) == len(shown) - 2, "its own test split is kept out"
    assert {row["taxon_scientific_name"] for row in rows} == set(NAMES)
    assert {row["licence_id"] for row in rows} == {"CC-BY-4.0"}
    assert {row["image_id"] for row in rows} <= {hashlib.sha256(body).hexdigest() for _, body in shown}


@pytest.mark.slow
def test_datasets_writes_init_reads_and_datasets_opens_the_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    shown = photos()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES), "text": datasets.Value("string")}
    )
    captions = [f"a photo of {name} on a wooden table in the kitchen, {n}" for n, (name, _) in enumerate(shown)]
    for split, some in (("train", range(26)), ("test", range(26, 30))):
        values = {
            "image": [{"bytes": shown[n][1], "path": None} for n in some],
            "label": [n % 3 for n in some],
            "text": [captions[n] for n in some],
        }
        (tmp_path / "set/data").mkdir(parents=True, exist_ok=True)
        made = datasets.Dataset.from_dict(values, features=features)
        made.to_parquet(str(tmp_path / f"set/data/{split}-00000-of-00001.parquet"))
    said = done("init", "--domain", "plant=set", "--out", "my.yaml")
    assert "a test set by its name" in said
    (source,) = yaml.safe_load((tmp_path / "my.yaml").read_text())["sources"]
    path = "set/data/train-00000-of-00001.parquet"
    columns = {"image": "image", "caption": "text", "taxon_scientific_name": "label"}
    assert source["parquet"] == {"path": path, "columns": columns}
    done("build", "my.yaml")
    release = release_of(tmp_path / "data/my")
    shards = [str(shard) for shard in sorted(release.rglob("*.tar"))]
    opened = datasets.load_dataset("webdataset", data_files=shards, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(opened) == 26
    assert {row["txt"] for row in opened} == set(captions[:26])
    assert all(row["jpg"].size[0] > 0 for row in opened)


def test_a_set_to_judge_on_may_be_parquet(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", hub_table(photos()[:8]))
    write(tmp_path / "test.parquet", hub_table(photos()[5:7]).rename_columns(["img", "caption", "label"]))
    sets = [{"name": "theirs", "parquet": {"path": str(tmp_path / "test.parquet"), "columns": {"image": "img"}}}]
    build(config_of(tmp_path, tmp_path / "train.parquet", evaluation=sets), last="dedup")
    with open_reader(str(tmp_path / "work")) as sql:
        leaks = sql.execute("SELECT record_key, sample_id FROM leaks JOIN candidates USING (sample_id) ORDER BY 1")
        keys, leaking = zip(*leaks.fetchall(), strict=True)
    assert keys == ("train/5", "train/6")
    with open_image_index(tmp_path / "work", tmp_path) as found:  # `plantmix browse --evaluation` showed none of them
        pictures = EvaluationPictures(found.snapshot, [f"theirs={tmp_path}/test.parquet"])
        assert all(pictures.read(sample_id, "theirs") for sample_id in leaking)


def test_init_names_paths_without_bytes_and_takes_what_has_pictures(tmp_path: Path) -> None:
    paths = pa.array([{"bytes": None, "path": f"{n}.jpg"} for n in range(3)], IMAGE)
    write(tmp_path / "paths.parquet", pa.table({"image": paths, "text": ["a", "b", "c"]}))
    ended = run_here("init", "--domain", f"plant={tmp_path}/paths.parquet", "--out", tmp_path / "my.yaml")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "image.path names files; for files in a folder write `folder: " in ended.stderr
    write(tmp_path / "plain.parquet", pa.table({"digest": [b"\xff\xfe"] * 3, "jpg": [picture(n) for n in range(3)]}))
    done("init", "--domain", f"plant={tmp_path}/plain.parquet", "--out", tmp_path / "my.yaml")
    (source,) = yaml.safe_load((tmp_path / "my.yaml").read_text())["sources"]
    assert source["parquet"]["columns"] == {"image": "jpg", "caption": []}
