"""What was taken down is met by any spelling of its owner, and named by whatever would hand it on. One sealed build."""

from __future__ import annotations

import csv
import json
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from building import done, hash_tree, release_of, run_here, write_small_config
from sealed import lend, unwritten
from training_runs import tiny_values, write_values
from walk.web import picture

from manifests.contract.reader import open_reader
from manifests.contract.release import Release
from training.cli import main as dalip

OWNERS = (
    "Müller", unicodedata.normalize("NFD", "Müller"), " MÜLLER\u00a0", "Müller, J.", "Jörg Müller", "Müllerin",
    "Νίκος Δ", "ΝΊΚΟΣ\u2003Δ", "Jane Doe", "Jane Doe", "Jane Doe", "Jane Doe",
)  # fmt: skip


def _config(folder: Path, **sections: Any) -> Path:
    source = {
        "name": "ours",
        "domain": "plant",
        "folder": {"path": str(folder / "pics"), "table": "list.csv",
                   "columns": {"file": "file", "caption": "caption", "creator": "creator"}},
        "defaults": {"licence": "CC BY 4.0"},
    }  # fmt: skip
    sections = {"mix": {"ratio": {"plant": 1}, "heldout": {"num_samples": {"plant": 4}}}, **sections}
    return write_small_config(folder, source, file=sections.get("name", "small"), **sections)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "pics").mkdir()
    with (folder / "pics/list.csv").open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file", "caption", "creator"])
        for number, owner in enumerate(OWNERS):
            (folder / f"pics/{number}.jpg").write_bytes(picture(number, "jpg"))
            rows.writerow([f"{number}.jpg", f"a picture with the number {number} and much to see", owner])
    done("build", _config(folder))
    with unwritten(folder):
        yield folder


@pytest.fixture
def lent(sealed: Path, tmp_path: Path) -> Path:
    return lend(sealed, tmp_path / "lent")


def _owners(release: Path) -> list[str]:
    return sorted(pq.read_table(release / "attribution.parquet")["creator"].to_pylist())


def test_every_spelling_of_an_owner_goes_and_like_names_are_listed_before(lent: Path) -> None:
    work = lent / "work"
    said = done("takedown", work, "--owner", "müller ", "--owner", "νίκος δ").splitlines()
    assert said[:3] == [
        "not taken down, names like 'müller '; where one is the same owner, give it as --owner:",
        "  Jörg Müller: 1 images",
        "  Müller, J.: 1 images",
    ]
    assert "taken down: 5 images (5 samples); reason: not stated" in said
    left = ["Jane Doe"] * 4 + ["Jörg Müller", "Müller, J.", "Müllerin"]
    assert _owners(release_of(work)) == left
    done("build", _config(lent, name="later"))
    assert set(_owners(release_of(work))) == set(left)
    assert "DROPPED: takedown, by " in done("explain", work, "1.jpg")
    nobody = run_here("takedown", work, "--owner", "Doe")
    assert nobody.returncode == 2
    assert "owner 'Doe'; nothing was written" in nobody.stderr
    assert "names like 'Doe'; where one is the same owner, give it as --owner:\n  Jane Doe: 4 images" in nobody.stderr


def test_a_list_written_by_hand_in_another_spelling_holds_for_a_release_and_for_builds(lent: Path) -> None:
    listed = {"by": "owner", "value": unicodedata.normalize("NFD", "MÜLLER"), "reason": "asked by letter"}
    (lent / "work/takedowns.jsonl").write_text(json.dumps(listed) + "\n")
    stopped = run_here("export", lent / "work", "--for", "dalip")
    assert stopped.returncode == 2
    assert "holds 3 images that were taken down since" in stopped.stderr
    done("build", _config(lent, name="later"))
    assert set(_owners(release_of(lent / "work"))) == set(OWNERS[3:])


def _taken(release: Path | str) -> str:
    return min(row["sample_id"] for row in Release.open(str(release)).samples("train").to_pylist())


@pytest.mark.slow
def test_all_releases_that_hold_it_get_a_version_without(lent: Path) -> None:
    work = lent / "work"
    first, gone = release_of(work), _taken(release_of(work))
    done("build", _config(lent, name="second", pack={"samples_per_shard": 3}))
    done("build", _config(lent, name="third", mix={"ratio": {"plant": 1}, "seed": 7}))
    held = {path.name for path in (work / "releases").iterdir() if path.is_dir()}
    said = done("takedown", work, "--id", gone)
    new = {path.name for path in (work / "releases").iterdir() if path.is_dir()} - held
    assert len(new) == 3
    for name in new:
        assert gone not in pq.read_table(work / "releases" / name / "samples.parquet")["sample_id"].to_pylist()
        assert f"{work}/releases/{name}" in said
        done("export", work / "releases" / name, "--for", "dalip")
        done("verify", work / "releases" / name)
    for name in held:
        assert f"  {work}/releases/{name}: 1 of the images" in said
        assert run_here("export", work / "releases" / name, "--for", "dalip").returncode == 2
    for name in ("small", "second", "third"):
        assert (work / f"releases/{name}.LATEST").read_text().strip() in new
    assert {path.name for path in (work / "releases").iterdir() if path.is_dir()} == held | new
    assert "are as recorded" in done("verify", work)
    assert first.is_dir()


def test_another_release_that_cannot_be_cut_stops_nothing_and_is_named(lent: Path) -> None:
    work = lent / "work"
    first, gone = release_of(work), _taken(release_of(work))
    done("build", _config(lent, name="second", pack={"samples_per_shard": 3}))
    shard = next(iter(sorted((first / "shards").glob("*.tar"))))
    content = bytearray(shard.read_bytes())
    content[1500] ^= 0xFF
    shard.unlink()
    shard.write_bytes(content)
    ended = run_here("takedown", work, "--id", gone)
    assert ended.returncode == 1
    assert f"{first}: held 1 of the images, NOT cut: {shard}" in ended.stdout
    (first / "samples.parquet").unlink()
    ended = run_here("takedown", work, "--id", gone)
    assert ended.returncode == 1
    assert f"{first}: cannot be read, NOT cut: " in ended.stdout
    assert gone not in pq.read_table(release_of(work) / "samples.parquet")["sample_id"].to_pylist()


def test_a_near_copy_in_an_older_release_is_met_there(lent: Path) -> None:
    """The copy came later, stands in another release, and no build saw both."""
    work = lent / "work"
    near = picture(8, "near")
    (lent / "pics/8.jpg").write_bytes(near)
    first = release_of(work)
    done("build", _config(lent, name="second"))
    old, new = (
        next(row for row in Release.open(str(place)).samples().to_pylist() if row["text"].endswith("8 and much to see"))
        for place in (first, release_of(work))
    )
    assert old["image_id"] != new["image_id"]
    said = done("takedown", first, "--id", old["image_id"])
    for place in (work / "releases/small", work / "releases/second"):
        images = Release.open(str(place)).samples()["image_id"].to_pylist()
        assert not {old["image_id"], new["image_id"]} & set(images), said
        done("export", place, "--for", "dalip")


def test_publish_and_export_stop_without_the_list(lent: Path) -> None:
    work = lent / "work"
    done("takedown", work, "--id", _taken(release_of(work)))
    (work / "takedowns.jsonl").unlink()
    for words in (["export", work, "--for", "dalip"], ["publish", work, "--to", lent / "out"]):
        stopped = run_here(*words)
        assert stopped.returncode == 2
        assert "takedowns.jsonl: gone, so what must stay out is not known" in stopped.stderr
    assert not (lent / "out").exists()


@pytest.mark.slow
def test_runs_and_vectors_are_named_and_say_it_themselves(lent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = lent / "work"
    first, gone = release_of(work), _taken(release_of(work))
    run, vectors = work / "runs/one", work / "found/vectors.parquet"
    values = tiny_values(lent, release=str(work), output_dir=str(run), schedule={"steps": 1, "warmup_steps": 0})
    values |= {"eval": {"zero_shot": [], "batch_size": 4}, "data": {**values["data"], "batch_size": 4}}
    config = write_values(lent, values)

    def says(*words: str | Path) -> str:
        capsys.readouterr()
        assert dalip([str(word) for word in words]) == 0
        told = capsys.readouterr()
        return told.out + told.err

    says("train", config)
    says("embed", work, "--model", run, "--out", vectors)
    commands: list[list[str | Path]] = [
        ["eval", run, "--out", lent / "figures.json"],
        ["export", run, lent / "model.pt"],
        ["publish", run, "--to", "hf:lab/model", "--dry-run"],
        ["search", vectors, "--text", "a picture", "--top", "1"],
    ]
    assert not any("taken down" in says(*words) for words in commands)
    before = hash_tree(work / "runs") | hash_tree(work / "found")
    said = done("takedown", work, "--id", gone).splitlines()
    assert f"  {run}: trained on {first.name}" in said
    assert f"  {vectors}: vectors of 1 of the images" in said
    assert hash_tree(work / "runs") | hash_tree(work / "found") == before
    (lent / "model.pt").unlink()
    for words in commands:
        assert f"{first}: holds 1 images that were taken down since" in says(*words), words
    assert f"dalip: {vectors}: holds 1 pictures that were taken down since" in says(*commands[-1])
    shutil.rmtree(first)  # what a lab may do with it; the model holds it still
    for words in commands[1:]:
        assert "of which 1 images were taken down since" in says(*words), words


@pytest.mark.slow
def test_a_blurred_picture_is_known_by_the_hash_that_it_has_in_the_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "unit/pipeline/scoring"))
    (tmp_path / "pics").mkdir()
    for number in range(3):
        (tmp_path / f"pics/{number}.jpg").write_bytes(picture(number, "jpg"))
    source = {"name": "a", "domain": "plant", "folder": {"path": str(tmp_path / "pics"), "captions": "none"},
              "defaults": {"caption": "a picture with much to see", "licence": "CC0-1.0"}}  # fmt: skip
    plugin = {"name": "middle", "scorer": "own_scorer:Middle"}
    rule = {"scorer": "middle", "max_score": 0.01, "action": "blur"}
    config = write_small_config(tmp_path, source, score={"plugins": [plugin], "rules": [rule]})
    done("build", config)
    release = release_of(tmp_path / "work")
    row = next(row for row in pq.read_table(release / "samples.parquet").to_pylist() if row["packed_sha256"])
    said = done("takedown", tmp_path / "work", "--id", row["packed_sha256"])
    assert "taken down: 1 images" in said
    listed = [json.loads(line) for line in (tmp_path / "work/takedowns.jsonl").read_text().splitlines()]
    assert {row["packed_sha256"], row["image_id"]} <= {line["value"] for line in listed}
    assert "holds 1 images that were taken down since" in run_here("export", release, "--for", "dalip").stderr
    values = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(values | {"name": "later"}))
    done("build", config, "--to", "select")
    with open_reader(str(tmp_path / "work")) as sql:
        reason = "SELECT reason FROM decisions WHERE sample_id = $1"
        assert sql.execute(reason, [row["sample_id"]]).fetchall() == [("takedown",)]
