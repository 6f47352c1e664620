"""What verify finds in a release whose files no longer agree, each planted alone and sealed again over it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from building import Web, release_of, run_here, write_build_config
from sealed import flip_byte

from manifests.contract.release import Release
from manifests.errors import ConfigError, RunError
from manifests.stores.storage import hash_file
from pipeline.releases import checks, opening
from pipeline.releases.checks import check_release
from pipeline.releases.opening import open_release

Change = Callable[[Path, dict[str, Any]], None]


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of a work folder; gives the release in it."""
    shutil.copytree(built / "build", tmp_path / "build")
    return release_of(tmp_path / "build")


def seal_again(folder: Path, record: dict[str, Any]) -> None:
    """Make hashes and sizes fit whatever lies there, so that only what the files say of each other is wrong."""
    for name in record["files"]:
        written = hash_file(str(folder / name))
        record["files"][name] = {"num_bytes": written.num_bytes, "sha256": written.sha256}
    (folder / "release.json").write_text(json.dumps(record), encoding="utf-8")


def change_json(name: str, edit: Callable[[Any], Any]) -> Change:
    def change(folder: Path, record: dict[str, Any]) -> None:
        path = folder / name
        path.write_text(json.dumps(edit(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")

    return change


def change_samples(column: str, value: Any) -> Change:
    def change(folder: Path, record: dict[str, Any]) -> None:
        table = pq.read_table(folder / "samples.parquet")
        rows = table.to_pylist()
        rows[0][column] = value
        pq.write_table(table.from_pylist(rows, schema=table.schema), folder / "samples.parquet")

    return change


def drop_attribution(folder: Path, record: dict[str, Any]) -> None:
    table = pq.read_table(folder / "attribution.parquet")
    pq.write_table(table.slice(1), folder / "attribution.parquet")


def claim_a_takedown(folder: Path, record: dict[str, Any]) -> None:
    image = pq.read_table(folder / "samples.parquet", columns=["image_id"])["image_id"][0].as_py()
    record["takedowns"] = [{"images": [{"image_id": image}], "fingerprint": "x"}]


def move_a_domain(folder: Path, record: dict[str, Any]) -> None:
    domains = record["splits"]["train"]["shards"][0]["domains"]
    domains["plant"], domains["general"] = domains["plant"] - 1, domains["general"] + 1


def call_it_stratified(folder: Path, record: dict[str, Any]) -> None:
    record["kind"] = "stratified"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            change_json("shards/sizes.json", lambda sizes: dict(list(sizes.items())[1:])),
            "shards/sizes.json: not the samples",
        ),
        (
            change_json("heldout/wids.json", lambda index: {**index, "shardlist": []}),
            "heldout/wids.json: not the shards",
        ),
        (change_json("mixture.json", lambda m: {**m, "domains": m["domains"][:1]}), "mixture.json: says"),
        (drop_attribution, "attribution.parquet: 1 images are missing in it, 0 are none"),
        (claim_a_takedown, "was taken down, but is in samples.parquet"),
        (move_a_domain, "samples.parquet {"),
        (call_it_stratified, "domains in a shard of a stratified release"),
        (change_samples("split", "heldout"), "split heldout: the record says"),
    ],
)
def test_files_that_do_not_agree(folder: Path, change: Change, message: str) -> None:
    record = json.loads((folder / "release.json").read_text(encoding="utf-8"))
    change(folder, record)
    seal_again(folder, record)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_release(open_release(str(folder)), deep=False)


@pytest.mark.parametrize("name", ["splits", "counts", "recipe"])
def test_a_record_that_is_not_whole(folder: Path, name: str) -> None:
    record = json.loads((folder / "release.json").read_text(encoding="utf-8"))
    del record[name]
    (folder / "release.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"release.json: not a whole record, .*{name}"):
        check_release(open_release(str(folder)), deep=False)


SHARDS = ["shards/*-000001.tar", "heldout/*-000000.tar"]
OTHERS = ["shards/sizes.json", "shards/wids.json", "heldout/sizes.json", "heldout/wids.json", "samples.parquet",
          "attribution.parquet", "mixture.json", "ATTRIBUTION.md", "README.md", "report.html"]  # fmt: skip


@pytest.mark.parametrize(("name", "deep"), [*((name, True) for name in SHARDS), *((name, False) for name in OTHERS)])
def test_one_changed_byte_is_found_and_named(folder: Path, name: str, deep: bool) -> None:
    (path,) = folder.glob(name)
    flip_byte(path)
    found = re.escape(f"{path.relative_to(folder)} has other content than when it was sealed")
    with pytest.raises(ConfigError, match=found):
        check_release(open_release(str(folder)), deep=deep)


def test_those_are_all_kinds_of_files(folder: Path) -> None:
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {name for name in files if not name.endswith(".tar")} == {*OTHERS, "release.json"}


def test_a_changed_record_is_found_in_its_work_folder(folder: Path) -> None:
    path = folder / "release.json"
    content = path.read_text(encoding="utf-8")
    assert '"radius": 4' in content
    path.write_text(content.replace('"radius": 4', '"radius": 5', 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"release\.json is not the one that the catalogue knows"):
        check_release(open_release(str(folder)), deep=True)


def test_deep_compares_with_the_catalogue(folder: Path) -> None:
    done = run_here("verify", folder, "--deep")
    assert done.returncode == 0, done.stderr
    assert "pHash, image, licence and text of each equal the catalogue" in done.stdout
    spoil_licence(folder)
    done = run_here("verify", folder, "--deep")
    assert done.returncode == 2
    assert "not as in the catalogue: licence" in done.stderr


@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_deep_names_each_sample_that_is_not_as_recorded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, num_processes: int
) -> None:
    sound = open_release(str(folder))
    num_images = len(sound.samples())
    monkeypatch.setattr(checks, "num_cores", lambda: num_processes)
    monkeypatch.setattr(checks, "_IMAGES_OF_A_PROCESS", 1)
    assert check_release(sound, deep=True).num_images == num_images
    record = json.loads((folder / "release.json").read_text(encoding="utf-8"))
    table = pq.read_table(folder / "samples.parquet")
    spoilt = {"key": "other", "stored_sha256": "0" * 64, "phash": 1, "stored_width_px": 1, "text": "another text"}
    rows = table.to_pylist()
    for row, (column, value) in zip(rows, spoilt.items(), strict=False):
        row[column] = value
    pq.write_table(table.from_pylist(rows, schema=table.schema), folder / "samples.parquet")
    seal_again(folder, record)
    with pytest.raises(ConfigError) as told:
        check_release(open_release(str(folder)), deep=True)
    shard = rows[0]["shard"]
    for number, fault in enumerate(
        (
            r"the image is not the one recorded",
            r"pHash [0-9a-f]{16}, recorded 0000000000000001",
            r"\d+ x \d+ pixels, recorded 1 x \d+",
            r"the text is not the one recorded",
        ),
        1,
    ):
        assert re.search(f"{shard}/{rows[number]['key']}: {fault}", str(told.value))
    assert f"{shard}: {table['key'][0]} is not in samples.parquet" in str(told.value)
    assert f"{shard}: other of samples.parquet is not in the shard" in str(told.value)


def die(*_read: object) -> None:
    """Stands for the reading of a shard in a process that the kernel kills."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_deep_says_that_a_process_that_reads_was_killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "num_cores", lambda: 2)
    monkeypatch.setattr(checks, "_IMAGES_OF_A_PROCESS", 1)
    monkeypatch.setattr(checks, "_read_shard", die)
    with pytest.raises(RunError, match=r"a process that reads shards was killed.*run the same command again"):
        check_release(open_release(str(folder)), deep=True)


def spoil_licence(folder: Path) -> None:
    record = json.loads((folder / "release.json").read_text(encoding="utf-8"))
    change_samples("licence_id", "CC0-1.0")(folder, record)
    seal_again(folder, record)


@pytest.mark.slow
def test_deep_compares_a_release_of_an_earlier_build_with_what_it_was_packed_from(web: Web, folder: Path) -> None:
    """A later build with other pictures and other texts must not stand in for it."""
    work = folder.parents[1]
    config = write_build_config(web, work.parent, "later", work, fetch={"image": {"size_px": 64, "min_side_px": 32}})
    done = run_here("build", config)
    assert done.returncode == 0, done.stderr
    later = release_of(work)
    for release in (folder, later):
        done = run_here("verify", release, "--deep")
        assert done.returncode == 0, done.stderr
        assert "licence and text of each equal the catalogue" in done.stdout
    spoil_licence(folder)
    done = run_here("verify", folder, "--deep")
    assert done.returncode == 2
    assert "not as in the catalogue: licence" in done.stderr


def test_deep_says_why_it_did_not_compare_with_the_catalogue(built: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / folder.name)
    alone = run_here("verify", tmp_path / folder.name, "--deep")
    assert alone.returncode == 0, alone.stderr
    assert "not compared with a catalogue: it is in no work folder" in alone.stdout
    (table,) = (folder.parents[1] / "tables/fetch").glob("facts-*.parquet")
    table.unlink()
    lost = run_here("verify", folder, "--deep")
    assert lost.returncode == 0, lost.stderr
    assert "not compared with a catalogue: the facts that it was packed from are no longer in" in lost.stdout
    assert "equal the catalogue" not in lost.stdout
    asked = run_here("query", folder.parents[1], "SELECT 1")
    assert asked.returncode == 1
    assert "the table facts of the last build cannot be read" in asked.stderr
    assert f'No files found that match the pattern "{table}"' in asked.stderr


def test_deep_says_so_of_a_release_from_another_work_folder(web: Web, folder: Path, tmp_path: Path) -> None:
    config = write_build_config(web, tmp_path, "other")
    assert run_here("build", config, "--to", "ingest").returncode == 0
    shutil.copytree(folder, tmp_path / "other/releases" / folder.name)
    done = run_here("verify", tmp_path / "other/releases" / folder.name, "--deep")
    assert done.returncode == 0, done.stderr
    assert "the catalogue of this work folder does not know this release" in done.stdout


def test_a_release_on_an_object_store(folder: Path, tmp_path: Path) -> None:
    import fsspec

    from manifests.contract.takedowns import Entry
    from pipeline.releases.diff import compare
    from pipeline.releases.export import describe
    from pipeline.releases.report import report_of
    from pipeline.releases.takedown import take_down

    there = f"memory://{tmp_path.name}/{folder.name}"
    fs = fsspec.filesystem("memory")
    fs.put(str(folder), f"/{tmp_path.name}/{folder.name}", recursive=True)
    release = Release.open(there)
    assert check_release(release, deep=True).num_images == release.num_samples("train") + release.num_samples("heldout")
    assert report_of(release).encode() == (folder / "report.html").read_bytes()
    assert f"{there}/shards/" in describe(release, "open_clip", None)
    first = release.samples("train", columns=["url", "sample_id"])["url"][0].as_py()
    made = take_down(release, [Entry("url", first)], list).cut.new
    assert made is not None
    assert check_release(made, deep=True).num_images == len(made.samples())
    assert sum(row["removed"] for row in compare(release, made)["domains"]) == 1


def test_rows_come_shard_by_shard_whatever_the_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = Release.open(str(folder))
    expected = [
        (split, shard, [row["key"] for row in release.samples(split).to_pylist() if row["shard"] == shard])
        for split in ("train", "heldout")
        for shard in release.shards(split)
    ]
    for size in (1, 7, 30, 31, 50_000):
        monkeypatch.setattr("manifests.contract.release._BATCH_ROWS", size)
        found = [(split, shard, rows["key"].to_pylist()) for split, shard, rows in release.iter_shards(["key"])]
        assert found == expected
    assert [shard for _, shard, _ in release.iter_shards(["key"], "heldout")] == release.shards("heldout")


def test_the_comparison_with_the_catalogue_keeps_to_its_memory(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took 1.2 GiB for a million samples; for more, whatever DuckDB takes by itself: four fifths of a machine."""
    monkeypatch.setattr(opening, "MEMORY_GB", 1.0)
    limit = "SELECT current_setting('memory_limit') AS shard, 'x' AS key, true, false, false, false"
    monkeypatch.setattr(checks, "_COMPARED", limit)
    release = open_release(str(release_of(built / "build")))
    compared = checks.differences_from_catalogue(release, str(built / "build"))
    assert compared.faults == ["677.1 MiB/x: not as in the catalogue: pHash"]
