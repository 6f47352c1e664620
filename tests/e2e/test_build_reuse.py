"""A build is done once: what is sealed is reused, what changed is redone and nothing before it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from building import Web, done, hash_tree, release_of, run_here, write_build_config
from sealed import lend, part

from manifests.contract.reader import open_reader
from pipeline.flow import FLOW

STAGES = [stage.name for stage in FLOW]


def _redone(stdout: str) -> list[str]:
    first = stdout.splitlines()[0]
    return [] if first.startswith("nothing to do") else first.partition(": ")[2].split(", ")


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return lend(built, tmp_path / "copy")


def _config(web: Web, copy: Path, **changes: object) -> Path:
    return write_build_config(web, copy, "build", **changes)


@pytest.mark.parametrize(
    ("section", "change", "first"),
    [
        ("caption", {"rules": [{"preset": "general", "min_words": 3}]}, "caption"),
        *(
            pytest.param(section, change, section, marks=pytest.mark.slow)
            for section, change in (
                ("pack", {"samples_per_shard": 50}),
                ("dedup", {"radius": 0}),
            )
        ),
    ],
)
def test_a_change_redoes_its_stage_and_what_follows(
    web: Web, copy: Path, section: str, change: dict[str, object], first: str
) -> None:
    done = run_here("build", _config(web, copy, **{section: change}))
    assert done.returncode == 0, done.stderr
    redone = _redone(done.stdout)
    assert redone[0] == first
    assert redone[-1] == "pack"
    assert "fetch" not in redone
    old = run_here("build", _config(web, copy))
    assert old.stdout.startswith("nothing to do"), "the former version is still there"


def test_execution_settings_redo_nothing(web: Web, copy: Path) -> None:
    config = _config(web, copy, run={"executor": "ray", "num_workers": 2, "fetch_part_size": 7, "memory_gb": 1.0})
    assert run_here("build", config).stdout.startswith("nothing to do")


def test_an_edited_caption_downloads_nothing_and_a_new_url_just_that(web: Web, copy: Path) -> None:
    rows = list(csv.DictReader(web.plants.read_text(encoding="utf-8").splitlines()))
    rows[0]["caption"] = "A plant that somebody described better."
    rows.append({**rows[1], "record_id": "added", "url": rows[2]["url"] + "?again"})
    edited = copy / "plants.csv"
    with edited.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    config = _config(Web(edited, web.general, web.root), copy)
    done("build", config)
    with open_reader(str(copy / "build")) as connection:
        parts = connection.sql(
            "SELECT num_in FROM parts WHERE stage = 'fetch' AND step = 'download' ORDER BY committed_at DESC LIMIT 1"
        ).fetchall()
        captions = connection.sql("SELECT caption FROM candidates WHERE caption LIKE '%described better%'").fetchall()
    assert parts == [(1,)], "one part with the one new URL"
    assert len(captions) == 1


def test_a_lost_pool_file_is_fetched_again(web: Web, copy: Path) -> None:
    before = hash_tree(release_of(copy / "build"))
    lost = sorted((copy / "build/pool").glob("*.tar"))[0]
    lost.unlink()
    done = run_here("build", _config(web, copy))
    assert done.returncode == 0, done.stderr
    assert "1 parts lost their files" in done.stderr
    assert lost.exists()
    assert hash_tree(release_of(copy / "build")) == before


def test_a_changed_published_file_stops_the_build(web: Web, copy: Path) -> None:
    changed = part(sorted((copy / "build/pool").glob("*.tar"))[0])
    changed.write_bytes(changed.read_bytes() + b"x")
    done = run_here("build", _config(web, copy))
    assert done.returncode == 1
    assert f"{changed.name}: not what was recorded" in done.stderr
    assert f"`plantmix repair {copy / 'build'}`" in done.stderr


def test_every_stage_adds_up_in_status(built: Path) -> None:
    shown = run_here("status", built / "build", "--json")
    status = json.loads(shown.stdout)
    assert list(status["stages"]) == sorted(STAGES)
    before = None
    for stage in STAGES:
        row = status["stages"][stage]
        assert row["in"] == row["kept"] + sum(row["reasons"].values()), stage
        assert before is None or row["in"] == before, f"{stage} takes in what the stage before it kept"
        before = row["kept"]
    lines = run_here("status", built / "build").stdout.splitlines()
    assert [line.split()[0] for line in lines if line.split() and line.split()[0] in STAGES] == STAGES


def test_heldout_pictures_and_their_likes_are_not_in_training(built: Path) -> None:
    with open_reader(str(built / "build")) as connection:
        (close,) = connection.sql(
            "SELECT count(*) FROM samples a JOIN samples b ON a.split = 'heldout' AND b.split = 'train' "
            "AND bit_count(xor(a.phash, b.phash)) <= 4"
        ).fetchall()
        (num,) = connection.sql("SELECT count(*) FROM samples WHERE split = 'heldout'").fetchall()
    assert num == (20,)
    assert close == (0,)


def test_the_way_out_of_a_ratio_that_the_pool_cannot_fill_is_one(web: Web, copy: Path) -> None:
    before = release_of(copy / "build")
    done = run_here("build", _config(web, copy, mix={"num_samples": 200, "max_epochs": 1}))
    assert done.returncode == 2
    error = next(line for line in done.stderr.splitlines() if "error" in line)
    assert "200 samples at this ratio need 150 of the domain 'plant'" in error
    assert "max_epochs is 1" in error
    assert release_of(copy / "build") == before
    lowered = int(error.partition("Lower mix.num_samples to ")[2].split(" ")[0].replace(",", ""))
    again = run_here("build", _config(web, copy, mix={"num_samples": lowered, "max_epochs": 1}))
    assert again.returncode == 0, again.stderr
