"""`plantmix mix`: what a mixture would be before anything is written, and mixtures by size and by source."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from building import Web, hash_tree, release_of, run_plantmix, write_build_config

from manifests.release import Release


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy"


def _with_mix(config: Path, **mix: object) -> Path:
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    values["mix"] = {"heldout": values["mix"]["heldout"], **mix}
    config.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return config


def test_a_dry_run_tells_the_counts_and_writes_nothing(web: Web, copy: Path) -> None:
    config = _with_mix(write_build_config(web, copy, "build"), by_size={"plant": "all", "general": 0.25})
    before = hash_tree(copy)
    shown = run_plantmix("mix", config, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert hash_tree(copy) == before
    assert shown.stdout.rstrip().endswith("nothing was written")
    told = {
        line.split()[0]: line.split()[1:] for line in shown.stdout.splitlines() if line[:7] in ("plant  ", "general")
    }
    done = run_plantmix("mix", config)
    assert done.returncode == 0, done.stderr
    drawn = Release.open(str(release_of(copy / "build"))).num_by_domain("train")
    assert {domain: int(words[3]) for domain, words in told.items()} == drawn
    assert told["plant"][2] == told["plant"][3], "all of the pool"
    assert abs(drawn["general"] - sum(drawn.values()) / 4) < 1


def test_a_dry_run_says_what_a_pool_cannot_give(web: Web, copy: Path) -> None:
    config = _with_mix(write_build_config(web, copy, "build"), ratio={"plant": 3, "general": 1}, num_samples=5000)
    shown = run_plantmix("mix", config, "--dry-run")
    assert shown.returncode == 2
    assert "5,000 samples at this ratio need 3,750 of the domain 'plant'" in shown.stderr


def test_before_select_there_is_nothing_to_mix(web: Web, tmp_path: Path) -> None:
    shown = run_plantmix("mix", write_build_config(web, tmp_path, "none"), "--dry-run")
    assert shown.returncode == 2
    assert "no catalogue" in shown.stderr


def test_sources_get_their_weights_within_a_domain(web: Web, copy: Path) -> None:
    config = write_build_config(web, copy, "build")
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    second = {**values["sources"][1], "name": "more", "columns": {**values["sources"][1]["columns"], "caption": "url"}}
    values["sources"].append(second)
    values["dedup"] = {"radius": 0, "prefer": ["priority"]}
    values["mix"]["sources"] = {"general": {"general": 3, "more": 0}}
    values["caption"] = {"rules": [{"min_words": 0, "not_filename_like": False}]}
    config.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    done = run_plantmix("build", config)
    assert done.returncode == 0, done.stderr
    release = Release.open(str(release_of(copy / "build")))
    sources = Counter(row["source"] for row in release.samples("train").to_pylist() if row["domain"] == "general")
    assert set(sources) == {"general"}
