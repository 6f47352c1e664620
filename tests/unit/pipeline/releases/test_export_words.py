"""What export says of shards and ratios, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from building import run_here

from manifests.contract.release import Release
from manifests.errors import ConfigError
from pipeline.releases.export import braces, describe, epoch_samples, groups_of


def release(folder: Path, kind: str, **mix: object) -> Release:
    """A record with a plant pool of 100 and a general one of 1,000 samples; no shards are needed to describe them."""
    shards = [{"shard": f"r-plant-{n:06d}.tar", "num_samples": 50, "domains": {"plant": 50}} for n in range(2)]
    shards += [{"shard": f"r-general-{n:06d}.tar", "num_samples": 500, "domains": {"general": 500}} for n in (0, 2)]
    record = {
        "kind": kind,
        "splits": {"train": {"num_samples": 1100, "shards": shards}},
        "recipe": {"mix": {"max_epochs": {"plant": 3.0}, "num_samples": None, **mix}},
    }
    shares = {"plant": 0.75, "general": 0.25}
    rows = [{"domain": domain, "target_share": share} for domain, share in shares.items()]
    mixture = json.dumps({"domains": rows})
    (folder / "mixture.json").write_text(mixture)
    record["files"] = {"mixture.json": {"sha256": hashlib.sha256(mixture.encode()).hexdigest()}}
    return Release(str(folder), record)


def test_shards_as_braces() -> None:
    assert braces(["a-000000.tar", "a-000001.tar", "a-000002.tar"]) == "a-{000000..000002}.tar"
    assert braces(["a-000007.tar"]) == "a-000007.tar"
    assert braces(["a-b-000000.tar", "a-b-000002.tar", "a-b-000003.tar"]) == "a-b-{000000,{000002..000003}}.tar"


def test_factors_are_shares_over_samples(tmp_path: Path) -> None:
    given = release(tmp_path, "stratified")
    assert [(g.domain, g.share, g.num_samples, g.factor) for g in groups_of(given, None)] == [
        ("plant", 0.75, 100, 0.0075),
        ("general", 0.25, 1000, 0.00025),
    ]
    chosen = groups_of(given, {"plant": 10, "general": 3})
    assert [group.factor for group in chosen] == [10 / 13 / 100, 3 / 13 / 1000]
    assert [group.domain for group in groups_of(given, {"plant": 0, "general": 2})] == ["general"]


def test_an_epoch_is_what_the_pools_give_at_the_ratio(tmp_path: Path) -> None:
    given = release(tmp_path, "stratified")
    assert epoch_samples(given, groups_of(given, None)) == 400
    few = release(tmp_path, "stratified", num_samples=200)
    assert epoch_samples(few, groups_of(few, None)) == 200


def test_what_is_pasted(tmp_path: Path) -> None:
    text = describe(release(tmp_path, "stratified"), "open_clip", None)
    assert "r-plant-{000000..000001}.tar::" in text
    assert "r-general-{000000,000002}.tar" in text
    assert "--train-data-upsampling-factors 0.0075::0.00025" in text
    assert "--dataset-resampled" not in describe(release(tmp_path, "mixed"), "open_clip", None)
    assert "mixture:\n    plant: 0.75" in describe(release(tmp_path, "stratified"), "dalip", None)


def test_a_glob_of_a_domain_finds_its_own_shards_alone(tmp_path: Path) -> None:
    """Domains whose names go on in a digit where another one ends."""
    names = {domain: [f"r-{domain}-{n:06d}.tar" for n in range(2)] for domain in ("plant", "plant-2", "plant-2-0")}
    given = release(tmp_path, "stratified")
    given.record["splits"]["train"]["shards"] = [
        {"shard": name, "num_samples": 50, "domains": {domain: 50}} for domain in names for name in names[domain]
    ]
    (tmp_path / "shards").mkdir()
    for own in names.values():
        for name in own:
            (tmp_path / "shards" / name).touch()
    text = describe(given, "hf_datasets", dict.fromkeys(names, 1.0))
    globs = re.findall(rf"'{re.escape(str(tmp_path))}/(shards/.*?\.tar)'", text)
    found = {domain: sorted(path.name for path in tmp_path.glob(own)) for domain, own in zip(names, globs, strict=True)}
    assert found == names


def test_ratios_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has its ratio baked in; another one needs `plantmix mix`"):
        groups_of(release(tmp_path, "mixed"), {"plant": 1})
    for ratio, which in (
        ({"birds": 1.0, "plant": 1.0}, "wrong: birds=1"),
        ({"plant": -1.0, "general": 2.0}, "wrong: plant=-1"),
        ({"plant": float("inf"), "general": 1.0}, "wrong: plant=inf"),
        ({"plant": 1.0, "general": float("nan")}, "wrong: general=nan"),
        ({"plant": 0.0}, "their sum must be above 0"),
    ):
        with pytest.raises(
            ConfigError, match=rf"has the domains general, plant; .*--ratio general=1,plant=1 \({which}"
        ):
            groups_of(release(tmp_path, "stratified"), ratio)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--for", "open_clip", "--ratio", "plant"], "--ratio: 'plant' is not NAME=NUMBER"),
        (["--for", "open_clip", "--ratio", "plant=1, plant=2"], "--ratio: plant is given twice"),
        (["--for", "open_clip", "--out", "x"], "needs no files"),
        (["--for", "img2dataset"], "give --out DIR"),
    ],
)
def test_wrong_usage(tmp_path: Path, words: list[str], message: str) -> None:
    done = run_here("export", tmp_path, *words)
    assert done.returncode == 2
    assert message in done.stderr
