"""Taking images down: a new version, only touched shards rewritten, and out of later builds too."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
from building import Web, hash_tree, release_of, run_here, write_build_config
from sealed import lend

from manifests.contract.reader import open_reader
from manifests.contract.release import SPLIT_FOLDERS, Release
from manifests.contract.takedowns import Entry
from pipeline.releases import versions
from pipeline.releases.cutting import cut_shard, iter_samples
from pipeline.releases.lookup import find_in_release, images_of, look_up
from pipeline.releases.takedown import take_down


@pytest.fixture(scope="module")
def old(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release with many shards in a work folder of its own."""
    folder = tmp_path_factory.mktemp("takedown") / "copy"
    lend(built, folder)
    return Release.open(str(release_of(folder / "build")))


@pytest.fixture(scope="module")
def gone(old: Release) -> dict[str, Any]:
    """A training image that is drawn twice."""
    rows = old.samples("train").to_pylist()
    twice = {row["sample_id"] for row in rows if row["copy"] == 1}
    return min((row for row in rows if row["sample_id"] in twice), key=lambda row: str(row["sample_id"]))


@pytest.fixture(scope="module")
def new(old: Release, gone: dict[str, Any]) -> Release:
    done = run_here("takedown", old.path, "--url", gone["url"], "--reason", "asked by the owner")
    assert done.returncode == 0, done.stderr
    assert "taken down: 1 images (2 samples); reason: asked by the owner" in done.stdout
    return Release.open(str(Path(old.path).parents[1]))


def test_only_touched_shards_are_rewritten(old: Release, new: Release, gone: dict[str, Any]) -> None:
    touched = {row["shard"] for row in old.samples("train").to_pylist() if row["sample_id"] == gone["sample_id"]}
    for split in old.splits:
        assert new.shards(split) == old.shards(split)
        for shard in old.shards(split):
            before, after = Path(old.shard_path(split, shard)), Path(new.shard_path(split, shard))
            assert (before.read_bytes() == after.read_bytes()) == (shard not in touched)
            assert before.samefile(after) == (shard not in touched), "the same file on disk, not a copy"
            if shard in touched:
                kept = [sample for sample in iter_samples(str(before)) if not sample[0].startswith(gone["sample_id"])]
                assert list(iter_samples(str(after))) == kept


def test_the_new_version_verifies_and_says_what_went_and_why(old: Release, new: Release, gone: dict[str, Any]) -> None:
    assert run_here("verify", new.path, "--deep").returncode == 0
    assert run_here("verify", old.path).returncode == 0, "the old one is left as it was"
    (entry,) = new.record["takedowns"]
    assert (entry["from"], entry["reason"]) == (old.record["version"], "asked by the owner")
    assert (entry["num_images"], entry["num_samples"]) == (1, 2)
    assert [image["sample_id"] for image in entry["images"]] == [gone["sample_id"]]
    assert new.num_samples("train") == old.num_samples("train") - 2
    assert new.record["counts"]["samples"] == new.num_samples("train")
    assert new.record["counts"]["domains"] == new.num_by_domain()
    sizes = json.loads(Path(new.path, "shards/sizes.json").read_text(encoding="utf-8"))
    assert sum(sizes.values()) == new.num_samples("train") + new.num_samples("heldout")
    mixture = {row["domain"]: row for row in json.loads(Path(new.path, "mixture.json").read_text())["domains"]}
    assert {domain: row["num_drawn"] for domain, row in mixture.items()} == new.num_by_domain()
    for name in ("samples.parquet", "attribution.parquet"):
        assert gone["sample_id"].encode() not in Path(new.path, name).read_bytes()
    assert "asked by the owner" in Path(new.path, "README.md").read_text(encoding="utf-8")


def test_the_same_request_gives_the_same_bytes(
    old: Release, new: Release, gone: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(old.path, tmp_path / old.name)
    entries = [Entry("url", gone["url"], "asked by the owner")]
    again = take_down(Release.open(str(tmp_path / old.name)), entries, list).cut.new
    assert again is not None
    assert hash_tree(Path(again.path)) == hash_tree(Path(new.path))


def test_explain_tells_of_it_before_any_build(new: Release, gone: dict[str, Any]) -> None:
    work = Path(new.path).parents[1]
    for what in (gone["url"], gone["sample_id"]):
        told = run_here("explain", work, what).stdout
        assert "TAKEN DOWN since this build; reason: asked by the owner" in told, told


@pytest.mark.slow
def test_a_later_build_leaves_it_out(web: Web, old: Release, new: Release, gone: dict[str, Any]) -> None:
    work = Path(new.path).parents[1]
    done = run_here("build", write_build_config(web, work.parent, "later", work))
    assert done.returncode == 0, done.stderr
    assert " takedown" in done.stderr  # it and its copies
    built = Release.open(str(work))
    assert gone["sample_id"] not in built.samples()["sample_id"].to_pylist()
    told = run_here("explain", work, gone["url"]).stdout
    assert "DROPPED: takedown" in told
    assert "asked by the owner" in told
    assert run_here("build", write_build_config(web, work.parent, "later", work)).stdout.startswith("nothing to do")


@pytest.mark.slow
def test_no_picture_of_the_training_takes_the_place_of_a_held_out_one(web: Web, built: Path, tmp_path: Path) -> None:
    """A model that was trained on the release before has seen it."""
    lend(built, tmp_path / "copy")
    before = Release.open(str(release_of(tmp_path / "copy/build")))
    held, trained = (set(before.samples(split)["sample_id"].to_pylist()) for split in ("heldout", "train"))
    gone = sorted(held)[:3]
    _take_down(before, *gone, reason="asked")
    work = Path(before.path).parents[1]
    done = run_here("build", write_build_config(web, work.parent, "later", work))
    assert done.returncode == 0, done.stderr
    assert "or pictures were taken down, and none that was trained on takes their place" in done.stderr
    now = set(Release.open(str(work)).samples("heldout")["sample_id"].to_pylist())
    assert now == held - set(gone)
    assert not now & trained


def _ids(release: Release) -> set[str]:
    return set(release.samples()["sample_id"].to_pylist())


def _take_down(release: Release, *ids: str, reason: str) -> tuple[Release, str]:
    words = [word for sample_id in ids for word in ("--id", sample_id)]
    done = run_here("takedown", release.path, *words, "--reason", reason)
    assert done.returncode == 0, done.stderr
    return Release.open(done.stdout.splitlines()[-1].removeprefix("release: ")), done.stdout


@pytest.mark.parametrize("lies_in", ["a work folder", pytest.param("a folder of releases", marks=pytest.mark.slow)])
def test_a_takedown_from_an_older_version_brings_nothing_back(built: Path, tmp_path: Path, lies_in: str) -> None:
    if lies_in == "a work folder":
        lend(built / "build", tmp_path / "build")
        releases = tmp_path / "build/releases"
    else:  # where no list says what was taken down, only the other versions do
        releases = tmp_path / "releases"
        lend(built / "build/releases", releases)
    first = Release.open(str(releases))
    (releases / "unreadable").mkdir()
    (releases / "unreadable/release.json").write_text("{", encoding="utf-8")
    a, b, c = sorted(_ids(first))[:3]
    second, _ = _take_down(first, a, reason="asked for a")
    third, told = _take_down(first, b, reason="asked for b")
    assert _ids(third) == _ids(first) - {a, b}
    assert "taken down: 1 images" in told
    assert "left out as well, since they were taken down before: 1 images" in told
    for holder in (first, second):
        assert f"  {holder.path}: 1 of the images" in told.splitlines(), "both still hold b"
    given = [
        (entry["reason"], [image["sample_id"] for image in entry["images"]]) for entry in third.record["takedowns"]
    ]
    assert given == [("asked for a", [a]), ("asked for b", [b])]
    assert Release.open(str(releases)).path == third.path, "LATEST"
    assert run_here("verify", third.path, "--deep").returncode == 0
    fourth, _ = _take_down(second, c, reason="asked for c")
    assert _ids(fourth) == _ids(first) - {a, b, c}
    for pointer in ("LATEST", f"{first.record['name']}.LATEST"):
        assert (releases / pointer).read_text(encoding="utf-8").strip() == fourth.name
    again, _ = _take_down(first, a, reason="asked for a")
    assert _ids(again) == _ids(fourth), "asking again for the first brings nothing back either"


def test_what_stands_on_the_list_is_left_out_too(built: Path, tmp_path: Path) -> None:
    """Taken down from another release of the work folder, or written into the list by hand."""
    lend(built / "build", tmp_path / "build")
    release = Release.open(str(tmp_path / "build"))
    listed, asked = release.samples("train").to_pylist()[:2]
    line = {"by": "url", "value": listed["url"], "reason": "by hand"}
    (tmp_path / "build/takedowns.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    made, told = _take_down(release, asked["sample_id"], reason="x")
    assert _ids(made) == _ids(release) - {listed["sample_id"], asked["sample_id"]}
    assert [entry["reason"] for entry in made.record["takedowns"]] == ["by hand", "x"]
    assert "taken down before: 1 images" in told


@pytest.mark.slow
def test_a_pointer_to_another_build_names_the_version_of_that_build(web: Web, built: Path, tmp_path: Path) -> None:
    lend(built / "build", tmp_path / "build")
    first = Release.open(str(tmp_path / "build"))
    config = write_build_config(web, tmp_path, "other", tmp_path / "build", pack={"samples_per_shard": 50})
    assert run_here("build", config).returncode == 0
    other, gone = Release.open(str(tmp_path / "build")), min(_ids(first))
    made, told = _take_down(first, gone, reason="x")
    newest = Release.open(str(tmp_path / "build"))
    assert (made.origin, newest.origin) == (first.origin, other.origin)
    assert _ids(newest) == _ids(other) - {gone}
    assert f"  {other.path}: 1 of the images" in told


def test_outside_a_work_folder_only_the_release_is_asked(old: Release, tmp_path: Path) -> None:
    shutil.copytree(old.path, tmp_path / old.name)
    done = run_here("takedown", tmp_path / old.name, "--id", min(_ids(old)), "--id", "no such")
    assert done.returncode == 2
    assert "1 of the 2 given are not in this release: id 'no such'; nothing was written" in done.stderr


def _query(work: Path, query: str) -> list[str]:
    with open_reader(str(work)) as sql:
        return [value for (value,) in sql.execute(query).fetchall()]


def _listed(work: Path) -> list[tuple[str, str]]:
    lines = (work / "takedowns.jsonl").read_text(encoding="utf-8").splitlines()
    return [(entry["by"], entry["value"]) for entry in map(json.loads, lines) if entry["by"] != "picture"]


@pytest.mark.slow
def test_what_the_mixture_left_out_is_taken_down_too(web: Web, built: Path, tmp_path: Path) -> None:
    """Kept by select, not drawn: no version of this release is made for it, and no later mixture draws it."""
    work = tmp_path / "build"
    lend(built / "build", work)
    release = Release.open(str(work))
    left_out = sorted(set(_query(work, "SELECT sample_id FROM decisions WHERE keep")) - _ids(release))
    failed = min(_query(work, "SELECT sample_id FROM facts WHERE outcome <> 'ok'"))
    image = _query(work, f"SELECT image_id FROM facts WHERE sample_id = '{left_out[0]}'")
    words = ("--id", left_out[0], "--id", failed)
    before = sorted((work / "releases").iterdir())
    unknown = run_here("takedown", work, *words, "--url", "http://nobody.example/1.jpg")
    assert unknown.returncode == 2
    assert "1 of the 3 given are not in this release nor in the catalogue: url 'http://nobody.ex" in unknown.stderr
    assert not (work / "takedowns.jsonl").exists()
    done = run_here("takedown", work, *words, "--reason", "x")
    assert done.returncode == 0, done.stderr
    assert "taken down: 0 images (0 samples)" in done.stdout
    assert "not in this release, but in the catalogue or another release: 2 samples" in done.stdout
    assert "no new version" in done.stdout
    assert _listed(work) == [("id", left_out[0]), ("id", failed), ("id", *image)]
    assert sorted((work / "releases").iterdir()) == before
    drawn = min(_ids(release))
    new, told = _take_down(release, left_out[1], drawn, reason="x")
    assert _ids(new) == _ids(release) - {drawn}, (
        "one that is not in the release does not stand in the way of the others"
    )
    assert "taken down: 1 images" in told
    assert "not in this release, but in the catalogue or another release: 1 samples" in told
    config = write_build_config(web, tmp_path, "all", work, mix={"max_epochs": 9})
    assert run_here("build", config).returncode == 0
    later = _ids(Release.open(str(work)))
    assert set(left_out[2:]) <= later, "all of the pool is drawn"
    assert not {*left_out[:2], drawn} & later


def test_the_image_that_stands_in_for_a_copy_goes_with_it(built: Path, tmp_path: Path) -> None:
    work = tmp_path / "build"
    lend(built / "build", work)
    release = Release.open(str(work))
    pairs = _query(
        work,
        "SELECT sample_id || ' ' || other_sample_id FROM decisions WHERE reason = 'near_duplicate' "
        "AND other_sample_id IN (SELECT sample_id FROM placements) ORDER BY 1",
    )
    copy, stand_in = pairs[0].split()
    new, told = _take_down(release, copy, reason="x")
    assert "of these, kept in place of a near copy that was asked for: 1 images" in told
    assert _ids(new) == _ids(release) - {stand_in}


def test_the_difference_of_the_two_versions(old: Release, new: Release, gone: dict[str, Any]) -> None:
    told = run_here("diff", old.path, new.path, "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    changed = [row for row in found["domains"] if row["before"] != row["after"]]
    assert [(row["split"], row["domain"], row["removed"], row["added"]) for row in changed] == [
        ("train", gone["domain"], 1, 0)
    ]
    assert changed[0]["more_samples"] == -2
    touched = {row["shard"] for row in old.samples("train").to_pylist() if row["sample_id"] == gone["sample_id"]}
    assert found["shards"]["after"] - found["shards"]["shared"] == len(touched)
    assert found["recipe"] == []
    assert found["takedowns"][0]["reason"] == "asked by the owner"
    assert "taken down: 1 images, reason: asked by the owner" in run_here("diff", old.path, new.path).stdout
    same = run_here("diff", old.path, old.path).stdout
    assert "recipe: the same" in same
    back = json.loads(run_here("diff", new.path, old.path, "--json").stdout)
    assert sum(row["added"] for row in back["domains"]) == 1


def test_an_owner_and_an_image_hash(old: Release) -> None:
    rows = old.samples().to_pylist()
    owner = rows[0]["rights_holder"] or rows[0]["creator"]
    found = find_in_release(old, look_up(None, old, [], [Entry("owner", f"  {owner.upper()} ")]))
    assert {row["sample_id"] for row in found.asked} == {
        row["sample_id"] for row in rows if owner in (row["rights_holder"], row["creator"])
    }
    known = look_up(None, old, [], [Entry("id", rows[0]["image_id"])])
    (image,) = images_of(find_in_release(old, known).asked)
    assert image["sample_id"] == rows[0]["sample_id"]


def test_what_is_not_there_is_said_and_nothing_written(old: Release, gone: dict[str, Any]) -> None:
    before = sorted(Path(old.path).parent.iterdir())
    done = run_here("takedown", old.path, "--url", gone["url"], "--id", "f" * 64, "--owner", "Nobody At All")
    assert done.returncode == 2
    assert (
        "2 of the 3 given are not in this release nor in the catalogue: owner 'Nobody At All', id 'fff" in done.stderr
    )
    assert run_here("takedown", old.path).returncode == 2
    assert "an empty value names nothing" in run_here("takedown", old.path, "--owner", " ").stderr
    assert sorted(Path(old.path).parent.iterdir()) == before


class Places(dict[str, Any]):
    """Where the members of the samples of a cut shard lie; unlike a plain one it can be watched."""


def test_no_more_is_held_than_the_places_of_one_shard(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of all shards took 1 kB a sample."""
    lend(built, tmp_path / "copy")
    release = Release.open(str(release_of(tmp_path / "copy/build")))
    held: list[weakref.ref[Places]] = []

    def cut(*arguments: Any) -> dict[str, Any]:
        assert sum(places() is not None for places in held) <= 1
        entry = cut_shard(*arguments)
        held.append(weakref.ref(places := Places(entry["places"])))
        return entry | {"places": places}

    monkeypatch.setattr(versions, "cut_shard", cut)
    first = {row["shard"]: row["stored_sha256"] for row in release.samples("train").to_pylist()}
    take_down(release, [Entry("id", image, "asked") for image in first.values()], lambda _: None)
    assert len(held) >= 3
    assert run_here("verify", release.workdir, "--deep").returncode == 0


def test_a_shard_of_which_nothing_is_left_is_gone(old: Release, tmp_path: Path) -> None:
    shutil.copytree(old.path, tmp_path / old.name)
    release = Release.open(str(tmp_path / old.name))
    last = release.shards("train")[-1]
    ids = [row["sample_id"] for row in release.samples("train").to_pylist() if row["shard"] == last]
    made = take_down(release, [Entry("id", sample_id) for sample_id in ids], list).cut.new
    assert made is not None
    assert last not in made.shards("train")
    assert not Path(made.path, "shards", last).exists()
    assert run_here("verify", made.path, "--deep").returncode == 0


def test_a_release_of_which_nothing_would_be_left_is_refused_and_the_list_has_them(built: Path, tmp_path: Path) -> None:
    work = tmp_path / "build"
    lend(built / "build", work)
    release = Release.open(str(work))
    words = [word for sample_id in sorted(_ids(release)) for word in ("--id", sample_id)]
    done = run_here("takedown", work, *words)
    assert done.returncode == 2
    assert "nothing would be left; delete the release instead; later builds leave them out all the same" in done.stderr
    assert {value for _, value in _listed(work)} >= _ids(release)


PRINTED = ("open_clip", "webdataset", "hf_datasets", "dalip")


@pytest.fixture
def alone(built: Path, tmp_path: Path) -> Release:
    """A release in a folder of its own."""
    first = release_of(built / "build")
    shutil.copytree(first, tmp_path / first.name)
    return Release.open(str(tmp_path / first.name))


def _empty_split(release: Release, split: str) -> Release:
    ids = release.samples(split)["sample_id"].to_pylist()
    made = take_down(release, [Entry("id", sample_id, "all of them") for sample_id in ids], list).cut.new
    assert made is not None
    assert split not in made.splits
    assert not Path(made.path, SPLIT_FOLDERS[split]).exists()
    assert run_here("verify", made.path, "--deep").returncode == 0
    return made


@pytest.mark.slow
def test_a_held_out_split_of_which_nothing_is_left_is_gone(alone: Release) -> None:
    made = _empty_split(alone, "heldout")
    for target in PRINTED:
        done = run_here("export", made.path, "--for", target)
        assert done.returncode == 0, done.stderr
        assert "heldout" not in done.stdout
        assert "--val" not in done.stdout
    assert "heldout" not in Path(made.path, "README.md").read_text(encoding="utf-8").split("---")[1]
    assert run_here("diff", alone.path, made.path).returncode == 0


@pytest.mark.slow
def test_with_no_training_samples_left_there_is_nothing_to_export(alone: Release, tmp_path: Path) -> None:
    made = _empty_split(alone, "train")
    for target in (*PRINTED, "img2dataset"):
        out = [] if target in PRINTED else ["--out", tmp_path / target]
        done = run_here("export", made.path, "--for", target, *out)
        assert done.returncode == 2
        assert "no train samples are left in this release; it has heldout" in done.stderr
        assert not (tmp_path / target).exists()
    assert run_here("diff", alone.path, made.path).returncode == 0
    assert run_here("report", made.path, "--out", tmp_path / "page.html").returncode == 0
