"""`explain` answers for every image: each fate of the demo's pictures, by id, URL and shard/key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from building import run_here

from manifests.contract.reader import open_reader


@pytest.fixture
def work(built: Path) -> Path:
    return built / "build"


def _one(work: Path, where: str) -> dict[str, Any]:
    with open_reader(str(work)) as connection:
        rows = connection.sql(f"SELECT * FROM samples WHERE {where} ORDER BY sample_id LIMIT 1").to_arrow_table()
    assert rows.num_rows, f"no sample with {where}"
    return dict(rows.to_pylist()[0])


def _explain(work: Path, what: str) -> str:
    told = run_here("explain", work, what)
    assert told.returncode == 0, told.stderr
    return told.stdout


def test_a_kept_image_by_id_url_and_key(work: Path) -> None:
    row = _one(work, "split = 'train'")
    by_id = _explain(work, row["sample_id"])
    assert _explain(work, row["url"]) == by_id
    assert _explain(work, f"{row['shard']}/{row['key']}") == by_id
    for part in (row["url"], row["image_id"], f"{row['phash']:016x}", row["pool_file"], row["shard"], row["key"]):
        assert str(part) in by_id
    assert "select    kept" in by_id
    assert "drawn for train" in by_id


def test_an_image_by_what_can_be_pasted(work: Path) -> None:
    row = _one(work, "split = 'train'")
    by_id = _explain(work, row["sample_id"])
    for what in (
        row["sample_id"][:12],
        f'"{row["sample_id"]}",',
        f"<{row['url']}>",
    ):
        assert _explain(work, what) == by_id, what
    for what in (row["image_id"], row["image_id"][:16]):
        assert by_id.strip() in _explain(work, what), "with the other addresses of the same bytes"


def test_duplicates_name_the_one_kept_instead(work: Path) -> None:
    exact = _one(work, "reason = 'exact_duplicate'")
    told = _explain(work, exact["sample_id"])
    assert "exact_duplicate (same bytes)" in told
    assert exact["other_sample_id"] in told
    near = _one(work, "reason = 'near_duplicate' AND distance > 0 AND value NOT LIKE 'mirrored%'")
    told = _explain(work, near["sample_id"])
    assert f"near_duplicate (pHash distance {near['distance']})" in told
    twin = _one(work, f"sample_id = '{near['other_sample_id']}'")
    assert twin["url"] in told
    assert bin(near["phash"] ^ twin["phash"]).count("1") == near["distance"] <= 4
    assert near["sample_id"] in _explain(work, twin["sample_id"]), "the kept one says whom it stands for"


def test_drops_show_value_and_threshold(work: Path) -> None:
    told = _explain(work, _one(work, "reason = 'min_chars'")["sample_id"])
    assert "caption   DROPPED: min_chars (measured '1', allowed >= 2)" in told
    told = _explain(work, _one(work, "outcome = 'http_404'")["url"])
    assert "fetch     DROPPED: http_404" in told
    assert "final" in told


def test_left_out_by_the_ratio(work: Path) -> None:
    told = _explain(work, _one(work, "keep AND split IS NULL")["sample_id"])
    assert "select    kept" in told
    assert "left_out_by_ratio" in told


def test_json_and_an_unknown_image(work: Path) -> None:
    row = _one(work, "split = 'heldout'")
    told = run_here("explain", work, row["sample_id"], "--json")
    (life,) = json.loads(told.stdout)
    assert life["candidates"]["url"] == row["url"]
    assert life["placements"][0]["split"] == "heldout"
    unknown = run_here("explain", work, "https://example.org/none.jpg")
    assert unknown.returncode == 2
    assert "no such image" in unknown.stderr
