"""`plantmix mix`: what a mixture would be before anything is written, and mixtures by size and by source."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml
from building import Web, done, hash_tree, release_of, run_here, write_build_config
from sealed import lend

from manifests.contract.release import Release


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return lend(built, tmp_path / "copy")


def _with_mix(config: Path, **mix: object) -> Path:
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    values["mix"] = {"heldout": values["mix"]["heldout"], **mix}
    config.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return config


def test_a_dry_run_tells_the_counts_and_writes_nothing(web: Web, copy: Path) -> None:
    config = _with_mix(write_build_config(web, copy, "build"), by_size={"plant": "all", "general": 0.25})
    before = hash_tree(copy)
    shown = run_here("mix", config, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert hash_tree(copy) == before
    assert shown.stdout.rstrip().endswith("nothing was written")
    told = _rows_by_domain(shown.stdout)
    done("mix", config)
    drawn = Release.open(str(release_of(copy / "build"))).num_by_domain()
    assert {domain: int(words[3]) for domain, words in told.items()} == drawn
    assert told["plant"][2] == told["plant"][3], "all of the pool"
    assert abs(drawn["general"] - sum(drawn.values()) / 4) < 1


def _rows_by_domain(shown: str) -> dict[str, list[str]]:
    """Words of the rows of a dry run, by domain."""
    return {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line[:7] in ("plant  ", "general")}


@pytest.mark.slow
def test_after_a_takedown_another_mixture_is_drawn_without_it(web: Web, copy: Path) -> None:
    work = copy / "build"
    config = _with_mix(write_build_config(web, copy, "other", work), by_size={"plant": "all", "general": 0.25})
    pool = {
        domain: int(words[2]) for domain, words in _rows_by_domain(run_here("mix", config, "--dry-run").stdout).items()
    }
    rows = Release.open(str(work)).samples("train", columns=["sample_id", "domain"]).to_pylist()
    gone = [next(row["sample_id"] for row in rows if row["domain"] == domain) for domain in ("plant", "general")]
    assert run_here("takedown", work, "--id", gone[0], "--id", gone[1]).returncode == 0
    before = hash_tree(copy)
    refused = run_here("mix", config, "--dry-run")
    assert refused.returncode == 2
    assert "takedowns or settings of select have changed since it ran" in refused.stderr
    assert hash_tree(copy) == before
    assert run_here("build", config, "--to", "select").returncode == 0
    shown = run_here("mix", config, "--dry-run").stdout
    assert "pools as select left them at" in shown
    told = _rows_by_domain(shown)
    assert {domain: int(words[2]) for domain, words in told.items()} == {name: num - 1 for name, num in pool.items()}
    done("mix", config)
    release = Release.open(str(work))
    assert not set(gone) & set(release.samples()["sample_id"].to_pylist())
    assert {domain: int(words[3]) for domain, words in told.items()} == release.num_by_domain()


def test_what_must_be_built_first_is_said_with_the_command_that_does_it(web: Web, copy: Path) -> None:
    config = write_build_config(web, copy, "build", fetch={"image": {"size_px": 32}})
    done = run_here("mix", config)
    assert done.returncode == 2
    assert "error: the stage 'fetch' is not done yet with this configuration; run `plantmix build` with" in done.stderr
    assert "--from" not in done.stderr


@pytest.mark.parametrize("lost", ["pool/*.tar", "tables/caption/captions-*.parquet"])
def test_mix_forgets_nothing_that_it_does_not_make_again(web: Web, copy: Path, lost: str) -> None:
    config, work = write_build_config(web, copy, "build", mix={"seed": 5}), copy / "build"
    file = next(iter(sorted(work.glob(lost))))
    file.unlink()
    refused = run_here("mix", config)
    assert refused.returncode == 1, refused.stderr
    assert f"{file.name}: " in refused.stderr
    assert f"`plantmix repair {work}`" in refused.stderr
    told = run_here("verify", work)
    assert told.returncode == 1, told.stdout
    assert f"{file.relative_to(work)}: gone" in told.stdout


@pytest.mark.slow
def test_sources_get_their_weights_within_a_domain(web: Web, copy: Path) -> None:
    config = write_build_config(web, copy, "build")
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    second = {**values["sources"][1], "name": "more", "columns": {**values["sources"][1]["columns"], "caption": "url"}}
    values["sources"].append(second)
    values["dedup"] = {"radius": 0}
    values["mix"]["sources"] = {"general": {"general": 3, "more": 0}}
    values["caption"] = {"rules": [{"min_words": 0, "not_filename_like": False}]}
    config.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    done("build", config)
    release = Release.open(str(release_of(copy / "build")))
    sources = Counter(row["source"] for row in release.samples("train").to_pylist() if row["domain"] == "general")
    assert set(sources) == {"general"}
