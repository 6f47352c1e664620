"""`plantmix preview`: from the sources before a build and from the work folder after it; nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

from building import Web, hash_tree, run_here, write_build_config


def test_before_a_build_the_sources_are_read_and_nothing_is_written(web: Web, tmp_path: Path) -> None:
    config = write_build_config(web, tmp_path, "build")
    told = run_here("preview", config, "--num", "60")
    assert told.returncode == 0, told.stderr
    assert "60 rows drawn from" in told.stdout
    assert "no picture is fetched yet" in told.stdout
    assert not (tmp_path / "build").exists()
    assert run_here("preview", config, "--num", "60").stdout == told.stdout, "the same rows are drawn each time"
    assert "give at least 1" in run_here("preview", config, "--num", "0").stderr


def test_after_a_build_its_candidates_and_pictures_are_looked_at(built: Path) -> None:
    before = hash_tree(built)
    told = run_here("preview", built / "build.yaml", "--json")
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert "and their fetched pictures" in report["origin"]
    assert report["not_judged"] == []
    assert report["num_rows"] == report["kept"]["num"] + sum(rule["num_dropped"] for rule in report["rules"])
    dropped = {rule["rule"] for rule in report["rules"] if rule["num_dropped"]}
    assert "min_chars" in dropped
    assert hash_tree(built) == before
