"""Secrets in settings: they reach who needs them, and nothing that is shown, published or uploaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from building import release_of
from misbehaving.answers import encode, pixels

from manifests.contract.catalog import Catalog
from manifests.contract.reader import open_reader
from pipeline.cli import main
from pipeline.config import read_config
from pipeline.demo.server import serving
from pipeline.engine.kept_config import last_config
from pipeline.scoring import scorers

PASSWORD, TOKEN, NESTED = "hunter2secret", "s3cr3tt0k3n", "n3st3ds3cr3t"
SCORER = """
from pathlib import Path
class Fixed:
    name = "fixed"
    def __init__(self, **options): self.options = options
    def load(self): self.value = float(Path(self.options["deep"][0]["weights"]).read_text()) + {added}
    def score(self, images, texts): return [self.value] * len(images)
"""


@pytest.fixture
def write_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A build of a few local pictures, scored by a plug-in, with an evaluation table at an address with secrets."""
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        (tmp_path / f"pictures/{number}.jpg").write_bytes(encode(pixels(seed=number), quality=90))
    (tmp_path / "private").mkdir()
    (tmp_path / "private/weights.txt").write_text("0.25")
    (tmp_path / "own_fixed.py").write_text(SCORER.format(added=0))
    (tmp_path / "web").mkdir()
    (tmp_path / "web/list.csv").write_text("url,caption\nhttp://127.0.0.1/x.jpg,a flower in the field\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two versions of a file within a second
    options = {
        "token": TOKEN,
        "account": {"password": NESTED},
        "deep": [{"weights": str(tmp_path / "private/weights.txt")}],
    }
    with serving(tmp_path / "web") as server:
        address = f"http://eve:{PASSWORD}@127.0.0.1:{server.port}/list.csv?token={TOKEN}"
        evaluation = {"name": "known", "table": address, "format": "csv", "match_names": True}
        values = {
            "name": "own",
            "work_dir": str(tmp_path / "work"),
            "sources": [
                {
                    "name": "ours",
                    "domain": "plant",
                    "folder": {"path": str(tmp_path / "pictures")},
                    "defaults": {"licence": "CC0-1.0", "caption": "a flower in the field"},
                }
            ],
            "evaluation": [evaluation | {"columns": {"url": "url", "caption": "caption"}}],
            "score": {"plugins": [{"scorer": "own_fixed:Fixed", "name": "fixed", "options": options}]},
            "mix": {"ratio": {"plant": 1}},
            "run": {"executor": "inline"},
        }
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        yield path
    sys.modules.pop("own_fixed", None)


def scores(work: Path) -> set[float]:
    with open_reader(str(work)) as connection:
        return {row[0] for row in connection.sql("SELECT score FROM scores").fetchall()}


def build_as_a_new_process(config: Path) -> None:
    sys.modules.pop("own_fixed", None)
    scorers._load.cache_clear()
    assert main(["--quiet", "build", str(config)]) == 0


def test_secrets_of_settings_are_in_no_file_but_private_ones(write_config: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    build_as_a_new_process(write_config)
    private = work / "catalog.config"
    assert private.stat().st_mode & 0o777 == 0o600
    for path in work.rglob("*"):
        content = path.read_bytes() if path.is_file() and path != private else b""
        for secret in (PASSWORD, TOKEN, NESTED, "eve:"):
            assert secret.encode() not in content, (path, secret)
    for path in release_of(work).rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path
    record = json.loads((release_of(work) / "release.json").read_text())
    options = {"token": "***", "account": {"password": "***"}, "deep": [{"weights": sha256(b"0.25").hexdigest()}]}
    assert record["recipe"]["score"]["plugins"][0]["options"] == options
    with Catalog.open(str(work)) as catalog:
        assert last_config(catalog) == read_config(write_config), "a later command has the real address"
    private.unlink()
    assert main(["retry", str(work)]) == 2


@pytest.mark.slow
def test_scores_are_made_anew_when_a_nested_file_or_the_code_of_a_plug_in_changes(
    write_config: Path, tmp_path: Path
) -> None:
    build_as_a_new_process(write_config)
    assert scores(tmp_path / "work") == {0.25}
    (tmp_path / "private/weights.txt").write_text("0.50")
    build_as_a_new_process(write_config)
    assert scores(tmp_path / "work") == {0.5}
    (tmp_path / "own_fixed.py").write_text(SCORER.format(added=1))
    build_as_a_new_process(write_config)
    assert scores(tmp_path / "work") == {1.5}
