"""What may be read, also while a build holds the catalogue."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sealed import lend

from manifests.contract import reader
from manifests.errors import ConfigError, RunError
from manifests.stores import stamps
from pipeline.browse import index
from pipeline.browse.codes import Codes
from pipeline.browse.image_index import ImageIndex
from pipeline.browse.index import make_index
from pipeline.browse.pictures import read_picture
from pipeline.browse.snapshot import FACETS_FILE, IMAGES_FILE, open_snapshot

HOLD = """
import sys
from manifests.contract.catalog import Catalog
with Catalog.open(sys.argv[1]):
    print("held", flush=True)
    input()
"""


@pytest.mark.parametrize("name", ["../catalog.duckdb", "/etc/passwd", "../../pictures/broken.jpg", "", "."])
def test_a_hostile_table_leads_to_no_file_outside(image_index: ImageIndex, name: str) -> None:
    row = {"pool_file": name, "pool_offset": 0, "pool_length": 4, "shard": None, "shard_split": None}
    assert read_picture(image_index.snapshot, row) is None
    row = {"pool_file": None, "shard_split": "train", "shard": name, "jpg_offset": 0, "jpg_length": 4}
    assert read_picture(image_index.snapshot, row) is None


@pytest.fixture
def own_work(work: Path, tmp_path: Path) -> Path:
    """For what writes into it: other workers read `work` meanwhile."""
    return lend(work, tmp_path / "own")


def test_a_pool_file_that_is_a_link_to_elsewhere_is_not_read(own_work: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\xff\xd8 secret")
    (own_work / "pool" / "link.tar").symlink_to(tmp_path / "secret")
    row = {"pool_file": "link.tar", "pool_offset": 0, "pool_length": 4, "shard": None, "shard_split": None}
    with open_snapshot(str(own_work), tmp_path) as snapshot:
        assert read_picture(snapshot, row) is None


def test_it_works_while_a_build_holds_the_catalogue_and_lets_one_start(own_work: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(own_work)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as build:
        assert build.stdout is not None
        assert build.stdout.readline() == "held\n"
        with open_snapshot(str(own_work), tmp_path) as snapshot:
            make_index(snapshot)
            build.communicate("\n")
            assert build.returncode == 0
            again = subprocess.run(
                [sys.executable, "-c", HOLD, str(own_work)], input="\n", capture_output=True, text=True, check=False
            )
            assert (again.returncode, again.stdout) == (0, "held\n")


def test_a_catalogue_that_never_stands_still_is_said(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter(range(1000))
    monkeypatch.setattr(stamps, "of_disk", lambda stat: next(states))
    monkeypatch.setattr(reader, "SECONDS_BETWEEN_TRIES", 0)
    with pytest.raises(RunError, match="try again in a minute"), open_snapshot(str(work), tmp_path):
        pass


def test_nothing_is_written_where_one_looks(work: Path, tmp_path: Path) -> None:
    def listed() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(work.rglob("*"))}

    before = listed()
    with open_snapshot(str(work), tmp_path) as snapshot:
        make_index(snapshot)
    assert listed() == before


def test_the_index_of_many_parts_is_that_of_one(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for num, images in enumerate((1_000_000, 3)):
        monkeypatch.setattr(index, "PART_IMAGES", images)
        (tmp_path / f"{num}").mkdir()
        with open_snapshot(str(work), tmp_path / f"{num}") as snapshot:
            make_index(snapshot)
            with snapshot.attached(snapshot.index / IMAGES_FILE, read_only=True):
                rows.append([snapshot.connection.execute("SELECT * FROM session.images ORDER BY ALL").fetchall()])
                facets = Codes(snapshot.index / FACETS_FILE)
                rows[-1].append([(facet, facets.counts(facet.name, None)) for facet in facets.facets])
    assert len(rows[0][0]) > 9
    assert rows[0] == rows[1]


def test_a_folder_that_is_neither_is_named(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    with (
        pytest.raises(ConfigError, match=r"neither a work folder .* nor a release"),
        open_snapshot(str(tmp_path), tmp_path / "private"),
    ):
        pass
