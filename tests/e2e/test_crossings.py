"""Two promises that meet: what one command left decides what the next one may say. One sealed build, lent to each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from building import hash_tree, release_of, run_here, write_folder_config
from sealed import lend
from walk.web import picture

NUM_OF_DOMAIN = 9


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of pictures and a finished build of them (`work/`)."""
    folder = tmp_path_factory.mktemp("sealed")
    for domain, first in (("plant", 0), ("general", 100)):
        (folder / "pics" / domain).mkdir(parents=True)
        for number in range(NUM_OF_DOMAIN):
            place = folder / "pics" / domain / f"{number}.jpg"
            place.write_bytes(picture(first + number, "jpg"))
            place.with_suffix(".txt").write_text(f"a picture of the {domain} domain, number {number}")
    assert run_here("build", write_folder_config(folder, str(folder / "work"), str(folder / "pics"))).returncode == 0
    before = hash_tree(folder)
    yield folder
    assert hash_tree(folder) == before, "a test wrote into the folder that all tests share"


class Lent:
    """A copy of the build for one test."""

    def __init__(self, sealed: Path, folder: Path) -> None:
        self.folder, self.work = lend(sealed, folder), folder / "work"
        self.first = release_of(self.work)
        self.path = write_folder_config(folder, str(self.work), str(folder / "pics"))
        self.some_id: str = next(row["sample_id"] for row in self.samples(self.first) if row["split"] == "train")

    def config(self, **changes: Any) -> Path:
        """The configuration with other sections."""
        values = yaml.safe_load(self.path.read_text()) | changes
        path = self.folder / "changed.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    @staticmethod
    def samples(release: Path) -> list[dict[str, Any]]:
        """The samples table of a release."""
        return list(pq.read_table(release / "samples.parquet").to_pylist())

    def holds(self, release: Path) -> bool:
        """Whether a release holds the picture that the tests take down."""
        return self.some_id in {row["sample_id"] for row in self.samples(release)}


@pytest.fixture
def lent(sealed: Path, tmp_path: Path) -> Lent:
    return Lent(sealed, tmp_path / "lent")


def done(*arguments: str | Path) -> str:
    """What a command says that must succeed."""
    ended = run_here(*arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def refused(*arguments: str | Path) -> str:
    """What a command says that must refuse."""
    ended = run_here(*arguments)
    assert ended.returncode != 0, ended.stdout
    return ended.stdout + ended.stderr


# ---- takedowns


@pytest.mark.parametrize("way", [["publish", "--to"], ["export", "--for", "img2dataset", "--out"]])
def test_what_was_taken_down_does_not_leave_in_an_older_release(lent: Lent, way: list[str]) -> None:
    done("mix", lent.config(name="other"))
    done("takedown", lent.work / "releases/other", "--id", lent.some_id)
    (command, *options), target = way, lent.folder / "out"
    said = refused(command, lent.first, *options, target)
    assert "holds 1 images that were taken down since" in said
    assert not target.exists()
    done(*said.partition("`plantmix ")[2].partition("`")[0].split())  # the way out that it names
    done(command, lent.work / "releases/stored", *options, target)
    assert not lent.holds(lent.work / "releases" / (lent.work / "releases/stored.LATEST").read_text().strip())


def test_a_takedown_list_that_is_gone_stops_what_would_bring_pictures_back(lent: Lent) -> None:
    done("takedown", lent.work, "--id", lent.some_id)
    listed = lent.work / "takedowns.jsonl"
    listed.unlink()
    other = lent.config(mix={"ratio": {"plant": 1, "general": 1}, "seed": 1})
    for command in (["mix", other], ["mix", other, "--dry-run"], ["takedown", lent.work, "--id", lent.some_id]):
        assert "takedowns.jsonl: gone" in refused(*command)
    assert not listed.exists()
    assert "takedowns.jsonl: gone" in refused("verify", lent.work)
    listed.write_text("")  # the owner says that nothing is to stay out
    done("mix", other)
    assert lent.holds(release_of(lent.work))


# ---- what lies among the releases


@pytest.mark.parametrize("place", ["", "/inside", "/../copy"])
def test_a_release_is_not_published_among_the_sealed_ones(lent: Lent, place: str) -> None:
    before = hash_tree(lent.work / "releases")
    refused("publish", lent.work, "--to", f"{lent.first}{place}")
    assert hash_tree(lent.work / "releases") == before
