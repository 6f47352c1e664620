"""BioCLIP's text members in the shards: beside txt, in a fixed order, for samples whose taxon is known."""

from __future__ import annotations

import shutil
from pathlib import Path

from building import Web, release_of, run_plantmix, write_build_config

from manifests.release import Release
from manifests.takedowns import Entry
from pipeline.releases.cutting import iter_samples
from pipeline.releases.takedown import take_down
from pipeline.vocabulary.taxa import MEMBER_NAMES

WANTED = ["scientific", "common", "taxonomic", "sci", "com", "taxon", "sci_com", "taxon_com"]


def test_text_members_of_bioclip(web: Web, built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "copy")
    config = write_build_config(web, tmp_path / "copy", "build", caption={"text": {"members": WANTED}})
    done = run_plantmix("build", config)
    assert done.returncode == 0, done.stderr
    release = Release.open(str(release_of(tmp_path / "copy/build")))
    rows = {row["key"]: row for row in release.samples("train").to_pylist()}
    names = sorted(MEMBER_NAMES[name] for name in WANTED)
    with_texts = 0
    for shard in release.shards("train"):
        for key, members in iter_samples(release.shard_path("train", shard)):
            held = dict(members)
            assert [name for name, _ in members[:3]] == ["jpg", "txt", "json"]
            texts = [name for name, _ in members[3:]]
            assert texts == sorted(texts)
            assert set(texts) <= set(names)
            if rows[key]["taxon_scientific_name"]:
                with_texts += 1
                assert held["taxon.txt"]
                assert held["scientific_name.txt"].decode().split()[0] in rows[key]["taxon_scientific_name"]
            else:
                assert texts == []
    assert with_texts > 20
    assert run_plantmix("verify", release.path, "--deep").returncode == 0
    assert all(f"`{name}`" in Path(release.path, "README.md").read_text(encoding="utf-8") for name in names)
    first = next(row for row in rows.values() if row["taxon_scientific_name"])
    cut = take_down(release, [Entry("id", first["sample_id"])]).new
    assert cut is not None
    for shard in cut.shards("train"):
        before = dict(iter_samples(release.shard_path("train", shard)))
        after = dict(iter_samples(cut.shard_path("train", shard)))
        assert all(before[key] == members for key, members in after.items())
