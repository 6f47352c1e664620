"""Column names of a user's tables are data: whatever signs they hold, they end no quotes and write no file."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from building import done, write_small_config
from PIL import Image

from manifests.contract.reader import open_reader

ODD = ['a"b', "it's", "a\\b", "x\" FROM (COPY (SELECT 42) TO '{}') --", "a/b", "$.c"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pics").mkdir()
    for number in range(3):
        Image.effect_noise((80, 60), 60 + number).convert("RGB").save(tmp_path / f"pics/{number}.jpg")
    return tmp_path


def test_a_joined_column_of_any_name_is_kept_counted_and_capped(folder: Path) -> None:
    stolen = folder / "stolen.csv"
    names = [name.replace("{}", str(stolen)) for name in ODD]
    with (folder / "more.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", *names])
        writer.writerows([f"{number}.jpg", *(f"{name} of {number}" for name in names)] for number in range(3))
    source: dict[str, Any] = {
        "name": "ours",
        "domain": "plant",
        "folder": {"path": str(folder / "pics"), "captions": "none"},
        "defaults": {"caption": "a picture of a plant", "licence": "CC0"},
        "join": [{"table": str(folder / "more.csv"), "on": {"record_key": "file"}, "columns": {"extra": names}}],
    }
    caps = [{"by": f"extra.{names[0]}", "at_most": 2}]
    config = write_small_config(folder, source, select={"balance": {"caps": caps}})
    assert "3" in done("estimate", config)
    done("--quiet", "build", config)
    with open_reader(str(folder / "work")) as sql:
        extras = [
            json.loads(extra) for (extra,) in sql.execute("SELECT extra FROM candidates ORDER BY extra").fetchall()
        ]
    assert [extra[name] for extra in extras for name in names] == [f"{n} of {i}" for i in range(3) for n in names]
    assert not stolen.exists()
