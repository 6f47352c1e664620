"""Text variants end to end: what the config names stands in the shards, and the training loader draws from it."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch
from building import Web, done, release_of, run_here, write_build_config
from sealed import lend

from manifests.contract.reader import open_reader
from manifests.contract.release import Release
from manifests.contract.tables import MEMBER_NAMES, TEXT_TYPES
from manifests.contract.takedowns import Entry
from pipeline.releases.cutting import iter_samples
from pipeline.releases.takedown import take_down
from training.data.loader import SampleDataset
from training.data.settings import TextSettings
from training.data.shards import open_pool

CHOICES = ("sentence", "taxonTag_com", "sci")


@pytest.fixture(scope="module")
def texts_built(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    text = {
        "choices": [{"domains": ["plant"], "any_of": list(CHOICES)}, {"any_of": ["caption"]}],
        "members": list(TEXT_TYPES),
        "seed": 5,
    }
    done("build", write_build_config(web, folder, "build", caption={"text": text}))
    return folder / "build"


def packed_texts(release: Path) -> dict[str, dict[str, str]]:
    """Text members of every training sample, by key."""
    found: dict[str, dict[str, str]] = {}
    for shard in sorted((release / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, name = member.name.partition(".")
                stream = tar.extractfile(member)
                if name.endswith("txt") and stream is not None:
                    found.setdefault(key, {})[name] = stream.read().decode()
    return found


def test_every_variant_stands_in_the_shard_as_the_catalogue_has_it(texts_built: Path) -> None:
    packed = packed_texts(release_of(texts_built))
    with open_reader(str(texts_built)) as connection:
        rows = connection.sql(
            "SELECT key, domain, text, texts FROM placements JOIN captions USING (sample_id) WHERE split = 'train'"
        ).fetchall()
    used: set[str] = set()
    num_taxa = 0
    for key, domain, text, texts in rows:
        members = dict(packed[key])
        txt = members.pop("txt")
        own = {MEMBER_NAMES[name]: value for name, value in texts.items()}
        assert members == dict.fromkeys(MEMBER_NAMES.values(), "") | own
        num_taxa += bool(texts)
        if domain == "plant" and texts:
            names = {name for name in CHOICES if texts[name] == txt}
            assert names, f"{txt} is none of {CHOICES}"
            used |= names
        else:
            assert txt == text
    assert num_taxa > 10
    assert used == set(CHOICES), "drawn by seed and sample"


def test_members_have_an_order_and_the_card_names_them(texts_built: Path) -> None:
    release = Release.open(str(release_of(texts_built)))
    names = sorted(MEMBER_NAMES[name] for name in TEXT_TYPES)
    card = Path(release.path, "README.md").read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in card] == []
    for shard in release.shards("train"):
        for _, members in iter_samples(release.shard_path("train", shard)):
            assert [name for name, _ in members] == ["jpg", "txt", "json", *names] == release.record["members"]
    assert run_here("verify", release.path, "--deep").returncode == 0


def test_a_takedown_keeps_them(texts_built: Path, tmp_path: Path) -> None:
    release = Release.open(str(release_of(lend(texts_built, tmp_path / "copy"))))
    gone = next(row["sample_id"] for row in release.samples("train").to_pylist() if row["taxon_scientific_name"])
    cut = take_down(release, [Entry("id", gone)], list).cut.new
    assert cut is not None
    for shard in cut.shards("train"):
        before = dict(iter_samples(release.shard_path("train", shard)))
        after = dict(iter_samples(cut.shard_path("train", shard)))
        assert all(before[key] == members for key, members in after.items())


def test_the_loader_draws_one_of_the_members_anew_each_time(texts_built: Path) -> None:
    release = Release.open(str(release_of(texts_built)))
    pool = open_pool([release], "train")
    packed = packed_texts(release_of(texts_built))
    seen: list[list[str]] = []

    def keep_texts(texts: list[str]) -> torch.Tensor:
        seen.append(texts)
        return torch.zeros(len(texts), 1)

    wanted = ("txt", "scientific_name", "taxonTag_com", "com")
    dataset = SampleDataset(
        pool, lambda content: torch.zeros(1), keep_texts, TextSettings(use="draw", members=wanted), 0
    )
    keys = pool.table["key"].to_pylist()
    plants = [row for row, key in enumerate(keys) if packed[key]["scientific_name.txt"]]
    for epoch in range(6):
        dataset.load([(epoch * len(pool) + row, row) for row in plants])
    for place, row in enumerate(plants):
        members = packed[keys[row]]
        allowed = {members["txt"], members["scientific_name.txt"], members["taxonTag_com.txt"], members["com.txt"]}
        assert {texts[place] for texts in seen} <= allowed
    assert sum(len({texts[place] for texts in seen}) > 1 for place in range(len(plants))) > len(plants) // 2
    again = len(seen)
    dataset.load([(row, row) for row in plants])
    assert seen[again] == seen[0], "a position always draws the same"
