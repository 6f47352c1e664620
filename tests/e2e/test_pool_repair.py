"""A pool file that is gone: the repair that the error message advises ends in a build that holds."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import yaml
from building import release_of, run_plantmix
from PIL import Image

from manifests.reader import open_reader
from pipeline.demo.server import serving

NUM_PICTURES = 20


def _pictures(folder: Path) -> None:
    folder.mkdir()
    for number in range(NUM_PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)
        Image.fromarray(pixels).resize((90, 90), Image.Resampling.BICUBIC).save(folder / f"{number}.png")


def _config(folder: Path, root: str, samples_per_shard: int) -> Path:
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["url", "caption"])
        writer.writerows([f"{root}{number}.png", f"a square of many colours, number {number}"] for number in range(20))
    config = {
        "name": "repair",
        "work_dir": str(folder / "work"),
        "sources": [
            {
                "name": "list",
                "domain": "plant",
                "table": str(folder / "list.csv"),
                "columns": {"url": "url", "caption": "caption"},
                "defaults": {"licence": "CC0-1.0"},
            }
        ],
        "fetch": {"network": {"allow_private_addresses": True, "retries": 0, "robots_txt": False}},
        "caption": {"rules": [{}]},
        "mix": {"ratio": {"plant": 1}},
        "pack": {"samples_per_shard": samples_per_shard},
        "run": {"executor": "inline", "fetch_part_size": 10},
    }
    path = folder / f"repair-{samples_per_shard}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def test_a_lost_pool_file_is_fetched_anew_and_what_the_web_lost_is_lost_everywhere(tmp_path: Path) -> None:
    _pictures(tmp_path / "web")
    with serving(tmp_path / "web") as server:
        root = f"http://127.0.0.1:{server.port}/"
        first = run_plantmix("build", _config(tmp_path, root, 20))
        assert first.returncode == 0, first.stderr
        with open_reader(str(tmp_path / "work")) as sql:
            pool_file, url = sql.execute("SELECT min(pool_file), arg_min(final_url, pool_file) FROM facts").fetchall()[
                0
            ]
        (tmp_path / "work/pool" / pool_file).unlink()
        (tmp_path / "web" / url.rpartition("/")[2]).unlink()
        again = run_plantmix("build", _config(tmp_path, root, 20))
        assert again.returncode == 0, again.stderr
        with open_reader(str(tmp_path / "work")) as sql:
            held = sql.execute("SELECT outcome, count(*), count(pool_file) FROM facts GROUP BY 1 ORDER BY 1").fetchall()
        assert held == [("http_404", 1, 0), ("ok", 19, 19)]
        assert "fetch: done, 19 of 20 kept, dropped: 1 http_404" in again.stderr
        other = run_plantmix("build", _config(tmp_path, root, 7))
        assert other.returncode == 0, other.stderr
    checked = run_plantmix("verify", release_of(tmp_path / "work"), "--deep")
    assert checked.returncode == 0, checked.stdout + checked.stderr
