"""A step whose output changes needs a raised version: the values of its tables over a small corpus are recorded.

Tables are compared by their rows, not by their bytes; numbers are rounded. Where a version was raised, or a pinned
library moved, record them again:

    RECORD_STEP_VALUES=1 .venv/bin/python -m pytest tests/integration/test_step_values.py

Where fetch only gains a column, its downloads keep their version: the column is null in parts from before. Say
RECORD_STEP_VALUES=column then.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from building import ROOT, write_csv
from environments import needs_pinned, pins
from PIL import Image, ImageOps

from manifests.contract.catalog import Catalog
from pipeline.cli import main
from pipeline.config import STAGES
from pipeline.demo.server import serving
from pipeline.flow import FLOW

RECORDED = Path(__file__).with_suffix(".json")
PHOTOS = sorted((ROOT / "tests/photos").glob("*.jpg"))
# what decides over values besides our own code
LIBRARIES = ("pyarrow", "duckdb", "numpy", "pillow", "imagehash", "cykooz-resizer", "ftfy", "fasttext-predict")
_OF_THIS_RUN = re.compile(r"127\.0\.0\.1:\d+|\b[0-9a-f]{16}(-\d+)?\.tar\b")  # a port, a file named by a part's inputs
TAXA = ("Persea americana", "Zingiber officinale", "Beta vulgaris", "Prunus persica", "")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A build that runs nearly every step: a web and a folder, copies, rules that drop, a leak, a cap."""
    folder = tmp_path_factory.mktemp("values")
    with serving(ROOT / "tests/photos") as server:
        write_csv(folder, _rows(f"http://127.0.0.1:{server.port}"))
        _write_pictures(folder)
        (folder / "build.yaml").write_text(yaml.safe_dump(_config()))
        assert main(["build", str(folder / "build.yaml")]) == 0
    yield folder / "work"
    shutil.rmtree(folder)


def _rows(web: str) -> list[dict[str, Any]]:
    rows = [
        {
            "id": photo.stem,
            "url": f"{web}/{photo.name}",
            "caption": f"A photo of {photo.stem.replace('-', ' ')} from the shop",
            "taxon": TAXA[number % len(TAXA)],
            "licence": ("CC0", "CC-BY-4.0", "all rights reserved")[number % 7 % 3],
        }
        for number, photo in enumerate(PHOTOS[:11])
    ]
    rows[0]["caption"], rows[1]["caption"], rows[2]["caption"] = "IMG_0042.jpg", "Schön &amp; rot <b>frisch</b>", ""
    gone = {"id": "gone", "url": f"{web}/gone.jpg", "caption": "nothing", "taxon": "", "licence": "CC0"}
    return [*rows, gone, {**gone, "id": "wrong", "url": "gone.jpg"}]


def _write_pictures(folder: Path) -> None:
    for name in ("own", "held"):
        (folder / name).mkdir()
    for photo in [*PHOTOS[9:13], *PHOTOS[14:]]:
        shutil.copy(photo, folder / "own")
    with Image.open(PHOTOS[4]) as photo:
        ImageOps.mirror(photo).resize((150, 150)).save(folder / "own/mirrored.jpg", quality=90)
    with Image.open(PHOTOS[5]) as photo:
        photo.resize((260, 260)).save(folder / "own/blown-up.png")
        photo.resize((70, 70)).save(folder / "own/smaller.png")
    Image.new("RGB", (64, 64), "red").save(folder / "own/flat.png")
    for number, picture in enumerate(sorted((folder / "own").iterdir())):
        picture.with_suffix(".txt").write_text(f"something of ours, {('red', 'green')[number % 5 % 2]} {number // 2}")
    shutil.copy(PHOTOS[12], folder / "held")


def _config() -> dict[str, Any]:
    columns = {"record_key": "id", "url": "url", "caption": "caption", "licence": "licence"}
    own = {"path": "own", "captions": "text_file"}
    local = {"127.0.0.1": {"requests_per_second": None, "connections": 4}}
    return {
        "name": "values",
        "work_dir": "work",
        "sources": [
            {
                "name": "web",
                "domain": "plant",
                "table": "plants.csv",
                "columns": columns | {"taxon_scientific_name": "taxon"},
            },
            {
                "name": "own",
                "domain": "general",
                "folder": own,
                "defaults": {"licence": "CC0"},
            },
        ],
        "evaluation": [{"name": "held", "folder": {"path": "held"}}],
        "fetch": {
            "image": {"size_px": 96, "min_side_px": 48},
            "network": {
                # what was said is kept by place: other defaults would give other values, from the same version
                "consent_signals": ["content_usage", "tdm_reservation", "tdmrep_file", "iptc_data_mining"],
                "allow_private_addresses": ["127.0.0.1"],
                "hosts": [{"pattern": host, **limits} for host, limits in local.items()],
            },
        },
        "caption": {"rules": [{"preset": "general", "min_words": 2, "max_repeats": 1}]},
        "score": {
            "plugins": [{"name": "length", "scorer": "scorer_of_lengths:Lengths"}],
            "rules": [{"scorer": "length", "min_score": 2}],
        },
        "select": {"balance": {"caps": [{"by": "taxon", "at_most": 1}]}},
        "mix": {
            "ratio": {"plant": 2, "general": 1},
            "max_epochs": 2,
            "heldout": {"num_samples": {"plant": 1, "general": 0}},
        },
        "pack": {"samples_per_shard": 4},
        "run": {"executor": "inline", "fetch_part_size": 6, "max_passing_share": 1.0},
    }


def _values_of(work: Path) -> dict[str, dict[str, Any]]:
    """Each step that has run, in the order of the flow: its version, and a digest of the rows of each of its tables."""
    found: dict[str, dict[str, Any]] = {}
    with Catalog.open(str(work)) as catalog:
        for stage in FLOW:
            for step in stage.steps:
                rows: dict[str, list[str]] = {}
                for part in catalog.parts_of(str(catalog.find_current(stage.name)), step.name):
                    for file in part.files:
                        if file.path.startswith("tables/") and file.table != "stamps":  # times and inodes
                            table = pq.read_table(work / file.path).to_pylist()
                            rows.setdefault(file.table, []).extend(
                                json.dumps(_plain(row), sort_keys=True) for row in table
                            )
                if rows:
                    digests = {
                        name: hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]
                        for name, lines in rows.items()
                    }
                    found[f"{stage.name} {step.name}"] = {"version": step.version, "tables": digests}
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str):
        return _OF_THIS_RUN.sub("", value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _libraries() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def first_difference(now: dict[str, Any], recorded: dict[str, Any]) -> str:
    """The first step in the flow whose values or version are others, in words; what follows it follows from it."""
    for name in dict.fromkeys([*now, *recorded]):
        one, other = now.get(name), recorded.get(name)
        if one == other:
            continue
        if one is None or other is None:
            return f"{name}: {'is new' if other is None else 'has not run'}; record the values again"
        if one["version"] != other["version"]:
            return f"{name}: its version is {one['version']}, recorded is {other['version']}; record the values again"
        tables = [
            table
            for table in {**one["tables"], **other["tables"]}
            if one["tables"].get(table) != other["tables"].get(table)
        ]
        return (
            f"{name}: the values of {', '.join(tables)} have changed and its version is still {one['version']}. "
            "Where that is meant, raise the version of the step (CONTRIBUTING.md), then record the values again; "
            "downloads keep theirs for a new column"
        )
    return ""


def test_the_values_of_a_step_change_with_its_version_alone(work: Path) -> None:
    now = _values_of(work)
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {"libraries": {}, "steps": {}}
    difference = first_difference(now, recorded["steps"])
    if why := os.environ.get("RECORD_STEP_VALUES"):
        assert "still" not in difference or why == "column" or recorded["libraries"] != _libraries(), difference
        RECORDED.write_text(json.dumps({"libraries": _libraries(), "steps": now}, indent=1) + "\n")
        return
    assert recorded["libraries"] == {name: pins()[name] for name in LIBRARIES}, "a pin moved; record the values again"
    needs_pinned(*LIBRARIES)
    if platform.machine() != "x86_64":
        pytest.skip(f"recorded on x86-64, this is {platform.machine()}, where floats may be rounded otherwise")
    assert not difference, difference


def test_a_change_is_named_by_the_first_step_that_has_it() -> None:
    before = {
        "ingest read": {"version": 4, "tables": {"candidates": "a", "rejects": "b"}},
        "fetch collect": {"version": 2, "tables": {"facts": "c"}},
    }
    changed = json.loads(json.dumps(before))
    changed["ingest read"]["tables"]["candidates"] = changed["fetch collect"]["tables"]["facts"] = "x"
    assert first_difference(before, before) == ""
    assert first_difference(changed, before).startswith(
        "ingest read: the values of candidates have changed and its version is still 4."
    )
    changed["ingest read"]["version"] = 5
    assert first_difference(changed, before) == "ingest read: its version is 5, recorded is 4; record the values again"


def test_the_stages_are_named_in_the_order_of_the_flow() -> None:
    assert tuple(stage.name for stage in FLOW) == STAGES
