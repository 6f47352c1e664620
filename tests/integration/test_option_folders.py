"""Folders that an option of a plug-in names count with all that lies below them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from building import folder_source, run_here, write_small_config
from misbehaving.answers import encode, pixels

from manifests.contract.reader import open_reader
from pipeline.stages import score

SCORER = '''
from pathlib import Path


class Reads:
    """The number of bytes below a folder."""

    name, version = "reads", "1"

    def __init__(self, examples):
        self._examples = Path(examples)

    def load(self):
        pass

    def score(self, images, texts):  # a process loads a scorer once
        sizes = [path.stat().st_size for path in self._examples.rglob("*") if path.is_file()]
        return [float(sum(sizes))] * len(images)
'''


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "module").mkdir()
    (tmp_path / "module/reading_scorer.py").write_text(SCORER)
    monkeypatch.syspath_prepend(str(tmp_path / "module"))
    monkeypatch.delitem(sys.modules, "reading_scorer", raising=False)
    for name in ("map/a/one.txt", "map/two.txt", "map/a/.hidden"):
        (tmp_path / "examples" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "examples" / name).write_text("three")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/1.jpg").write_bytes(encode(pixels(), quality=90))
    options = {"examples": str(tmp_path / "examples")}
    plugin = {"name": "own", "scorer": "reading_scorer:Reads", "options": options}
    rules = [{"scorer": "own", "min_score": 0}]
    source = folder_source(tmp_path / "pictures", caption="a plant beside a path in the garden")
    return write_small_config(tmp_path, source, score={"plugins": [plugin], "rules": rules})


def scores(config: Path) -> tuple[str, list[float]]:
    done = run_here("build", config, "--to", "score")
    assert done.returncode == 0, done.stderr
    with open_reader(str(config.parent / "work")) as sql:
        return done.stderr, [score for (score,) in sql.execute("SELECT score FROM scores").fetchall()]


def test_a_file_in_a_sub_folder_counts(config: Path) -> None:
    examples = config.parent / "examples"
    assert scores(config)[1] == [15]
    assert "score: reused" in scores(config)[0]
    (examples / "map/a/one.txt").write_text("three and more")
    said, changed = scores(config)
    assert changed == [24]
    assert "score: reused" not in said
    shutil.move(examples / "map/a", examples / "drawing")
    assert "score: reused" not in scores(config)[0], "a folder may be a kind"
    shutil.move(examples, moved := config.parent / "elsewhere")
    shutil.copytree(moved, examples)
    assert "score: reused" in scores(config)[0], "by content, not by time"


def test_a_folder_that_holds_half_a_disk_is_refused(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "MOST_BELOW", 2)
    done = run_here("build", config, "--to", "score")
    assert done.returncode == 2
    assert "examples has more than 2 files in its sub-folders" in done.stderr
