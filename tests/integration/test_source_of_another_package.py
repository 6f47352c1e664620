"""The kind of source that CONTRIBUTING shows works in init, estimate, build and explain, from a package outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
(KIND,) = re.findall(
    r"```python\n(.*?)```",
    (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add a source kind")[2].partition("\n## ")[0],
    re.DOTALL,
)
ENTRY_POINTS = """[plantmix.sources]
album = albums:AlbumReader
torn = albums.missing:TornReader
"""
COMMANDS = """
from pathlib import Path
import yaml
from pipeline.cli import main
from pipeline.config import read_config

assert main(["init", "--domain", "plant=album", "--out", "run.yaml"]) == 0
values = yaml.safe_load(Path("run.yaml").read_text())
print("SOURCE", values["sources"])
values["sources"][0]["defaults"] = {"licence": "CC0-1.0"}
values["run"] = {"executor": "inline"}
values["caption"] = {"rules": [{"not_bare_name": True}]}
values["mix"].pop("heldout")
Path("run.yaml").write_text(yaml.safe_dump(values))
torn = values | {"sources": [{"name": "torn", "domain": "plant", "torn": {"path": "x"}}]}
Path("torn.yaml").write_text(yaml.safe_dump(torn))
for command in (["estimate", "run.yaml"], ["build", "run.yaml"], ["explain", "data/run", "oak.jpg"]):
    assert main(command) == 0, command
assert main(["estimate", "torn.yaml"]) == 2
source = read_config("run.yaml").sources[0]
before = source.identity()
print("IDENTITY", before["album"])
with Path("../albums.py").open("a") as module:
    module.write("# changed")
assert source.identity()["code"] != before["code"], "rows of changed code are not taken over"
"""


@pytest.mark.slow
def test_a_kind_of_another_package_works_in_every_command(tmp_path: Path) -> None:
    (tmp_path / "albums.py").write_text(KIND)
    about = tmp_path / "albums-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: albums\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    album = tmp_path / "here" / "album"
    album.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for name in ("rose.jpg", "oak.jpg", "fern.jpg"):
        pixels = noise.integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).resize((400, 300), Image.Resampling.BICUBIC).save(album / name)
    lines = (
        "rose.jpg: a red rose in a garden",
        "oak.jpg: an old oak in winter",
        "gone.jpg: nothing",
        "fern.jpg: a fern",
    )
    (album / "album.txt").write_text("\n".join(lines) + "\n")

    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        cwd=album.parent, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SOURCE [{'name': 'album', 'domain': 'plant', 'album': {'path': 'album'}}]" in done.stdout
    assert re.search(r"album +plant +4 +3 +1 missing_file", done.stdout)
    assert re.search(r"source +row 2 of album \(domain plant\), key oak.jpg", done.stdout)
    assert "ingest: done, 3 of 4 kept, dropped: 1 missing_file" in done.stderr
    assert "IDENTITY {'path': None}" in done.stdout, "no path is part of what the rows are known by"
    assert "the kind of source `torn` (albums.missing:TornReader) cannot be loaded: No module" in done.stderr
