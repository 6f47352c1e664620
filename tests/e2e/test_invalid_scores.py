"""What a scorer gives that is no score: the row is dropped for that reason; a box that is none fails the part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from building import ROOT, done, folder_source, run_here, write_small_config
from PIL import Image

from manifests.contract.catalog import Catalog
from manifests.contract.reader import open_reader
from manifests.stores import storage
from pipeline.answers.endings import _setting_behind

RULES = [
    {"min_score": 0.05}, {"max_score": 0.9}, {"min_quantile": 0.1}, {"max_score": 0.9, "action": "flag"},
]  # fmt: skip
COLOURS = {"nan": "red", "inf": "lime", "-inf": "blue", "3": "black", "4": "gray", "5": "white"}


@pytest.fixture(autouse=True)
def own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests/unit/pipeline/scoring"))


def _config(folder: Path, scorer: str, rule: dict[str, Any], **options: Any) -> Path:
    if not (pictures := folder / "pictures").exists():
        pictures.mkdir()
        for number, (name, colour) in enumerate(COLOURS.items()):
            noise = Image.effect_noise((130, 120), 60 + 10 * number).convert("RGB")
            Image.blend(noise, Image.new("RGB", noise.size, colour), 0.6).save(pictures / f"{name}.png")
    plugin = {"name": "own", "scorer": f"own_scorer:{scorer}", "options": options}
    source = folder_source(pictures, caption="a picture of noise and nothing else")
    source["folder"]["captions"] = "none"
    return write_small_config(folder, source, score={"plugins": [plugin], "rules": [{"scorer": "own", **rule}]})


def test_a_score_that_is_no_number_drops_its_row_and_moves_no_quantile(tmp_path: Path) -> None:
    for rule in RULES:
        done("build", _config(tmp_path, "Colours", rule), "--to", "select")
        with open_reader(str(tmp_path / "work")) as sql:
            told = sql.sql("FROM score_verdicts JOIN candidates USING (sample_id) SELECT record_key, reason, value")
            verdicts = {key.removesuffix(".png"): verdict for key, *verdict in told.fetchall()}
        assert {name: verdicts[name] for name in list(COLOURS)[:3]} == {
            name: ["invalid_score", name] for name in list(COLOURS)[:3]
        }, rule
        dropped = {name for name in list(COLOURS)[3:] if verdicts[name][0]}
        assert dropped == ({"3"} if "min_quantile" in rule else set()), rule
    assert (
        "DROPPED: invalid_score (measured 'nan', allowed a finite number)"
        in run_here("explain", tmp_path / "work", "nan.png").stdout
    )
    assert "NaN or infinity" in _setting_behind("invalid_score", "plant")


def test_a_box_that_is_none_fails_the_part_by_the_name_of_its_scorer(tmp_path: Path) -> None:
    config = _config(tmp_path, "Faulty", {"max_score": 0.5, "action": "blur"}, box=[10, 20, 90, 100, 0.9])
    built = run_here("build", config, "--to", "score")
    assert built.returncode == 1
    assert "the scorer faulty gave Box(left=10" in built.stderr
    assert "for a picture of 130 x 120 pixels" in built.stderr


def test_boxes_that_an_earlier_version_stored_are_not_taken_for_blurred(tmp_path: Path) -> None:
    config = _config(tmp_path, "Faulty", {"max_score": 0.5, "action": "blur"}, box=[0.1, 0.1, 0.9, 0.9, 0.9])
    assert run_here("build", config, "--to", "score").returncode == 0
    ((stored,),) = [list((tmp_path / "work/tables/score").glob("boxes-*.parquet"))]
    table = pq.read_table(stored)
    pixels = pa.array([90.0, *[0.9] * (table.num_rows - 1)], pa.float32())
    pq.write_table(table.set_column(table.schema.get_field_index("right"), "right", pixels), stored)
    changed = storage.hash_file(str(stored))
    with Catalog.open(str(tmp_path / "work")) as catalog:
        catalog._connection.execute(
            "UPDATE files SET sha256 = ?, num_bytes = ? WHERE path LIKE '%/boxes-%.parquet'",
            [changed.sha256, changed.num_bytes],
        )
    config = _config(tmp_path, "Faulty", {"max_score": 0.6, "action": "blur"}, box=[0.1, 0.1, 0.9, 0.9, 0.9])
    built = run_here("build", config, "--from", "score", "--to", "score")
    assert built.returncode == 0, built.stderr
    assert "5 of 6 kept, dropped: 1 invalid_score" in built.stdout + built.stderr
