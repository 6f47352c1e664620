"""Two promises that meet: what one command left decides what the next one may say. One sealed build, lent to each."""

from __future__ import annotations

import importlib
import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from building import ROOT, done, hash_tree, release_of, run_here, write_folder_config, write_pictures
from sealed import lend, part, unwritten
from walk.web import picture

from manifests.contract.release import Release
from manifests.contract.takedowns import Entry, taken_down_since
from manifests.stores.storage import hash_file
from pipeline.releases.lookup import Known, find_in_release, images_of


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of pictures and a finished build of them (`work/`)."""
    folder = tmp_path_factory.mktemp("sealed")
    done("build", write_folder_config(folder, str(folder / "work"), write_pictures(folder)))
    with unwritten(folder):
        yield folder


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


def refused(*arguments: str | Path) -> str:
    """What a command says that must refuse."""
    ended = run_here(*arguments)
    assert ended.returncode != 0, ended.stdout
    return ended.stdout + ended.stderr


# ---- takedowns


@pytest.mark.parametrize(
    "way",
    [["publish", "--to"], pytest.param(["export", "--for", "img2dataset", "--out"], marks=pytest.mark.slow)],
)
def test_what_was_taken_down_does_not_leave_in_an_older_release(lent: Lent, way: list[str]) -> None:
    done("mix", lent.config(name="other"))
    done("takedown", lent.work / "releases/other", "--id", lent.some_id)
    (command, *options), target = way, lent.folder / "out"
    said = refused(command, lent.first, *options, target)
    assert "holds 1 images that were taken down since" in said
    assert not target.exists()
    without = said.partition("; take ")[2].partition(", which is without them")[0]  # the way out that it names
    done(command, without, *options, target)
    assert not lent.holds(Path(without))


def test_who_takes_a_release_is_told_what_a_takedown_of_it_would_find(lent: Lent) -> None:
    """The table read by Arrow names the same images as the one read by DuckDB, for each kind of entry."""
    table, release = lent.first / "samples.parquet", Release.open(str(lent.first))
    rows = lent.samples(lent.first)
    for number, row in enumerate(rows):
        row |= {
            "creator": f" Zo\u00cb {number % 3}\u2003",
            "rights_holder": None if number % 2 else "\u0130pek \u03a3\u0391\u03a3",
        }
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(table)), part(table))
    release.record["files"]["samples.parquet"]["sha256"] = hash_file(str(table)).sha256
    values = {"url": ["url", "reference_url"], "id": ["sample_id", "image_id", "stored_sha256"]}
    some = rows[:2]
    entries = [Entry(by, row[column]) for row in some for by in values for column in values[by] if row[column]]
    entries += [Entry("owner", "nobody"), Entry("id", "a.b")]
    owners = [Entry("owner", "ZO\u00cb 1 "), Entry("owner", "\u0130PEK \u03a3\u0391\u03a3")]
    owners += [Entry("owner", "zoe\u0308\u00a01"), Entry("owner", "ipek\u2003\u03c3\u03b1\u03c2")]  # the same names
    for entry in entries + owners:
        (lent.work / "takedowns.jsonl").write_text(json.dumps(asdict(entry)))
        images = images_of(find_in_release(release, Known(), [entry]).rows)
        said = taken_down_since(release, str(lent.work)) or ""
        assert said.partition(" images")[0].endswith(f" {len(images)}") if images else not said, entry
        assert not images or f"--id {images[0]['sample_id']}`" in said
        assert images or entry not in owners


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


@pytest.mark.slow
def test_an_older_release_is_not_published_to_all_when_a_later_copy_forbids_it(lent: Lent) -> None:
    public = ("--to", "hf:me/plants", "--public", "--dry-run")
    assert "public: the licence of every image" in done("publish", lent.first, *public)
    (lent.folder / "pics/others").mkdir()
    shutil.copy(lent.folder / "pics/plant/0.jpg", lent.folder / "pics/others/0.jpg")
    (lent.folder / "pics/others/0.txt").write_text("a picture of the plant domain by someone else")
    sources = yaml.safe_load(lent.path.read_text())["sources"]
    folder = {"path": str(lent.folder / "pics/others"), "captions": "text_file"}
    sources.append({"name": "others", "domain": "plant", "folder": folder, "defaults": {"licence": "CC BY-ND 4.0"}})
    done("build", lent.config(sources=sources))
    assert "may not be public" in refused("publish", lent.work, *public)
    assert f"1 images: CC0-1.0, but CC-BY-ND-4.0 by the same picture in {release_of(lent.work).name}" in refused(
        "publish", lent.first, *public
    )
    assert "nothing was sent" in done("publish", lent.first, *public[:2], "--dry-run")
    sources[-1]["defaults"]["licence"] = "all rights reserved"  # the next build has neither of the two
    done("build", lent.config(sources=sources), "--to", "select")
    assert "but all-rights-reserved by the same bytes in the last build" in refused("publish", lent.first, *public)
    (lent.folder / "pics/others/0.jpg").write_bytes(picture(0, "near"))  # resized and encoded again
    done("build", lent.config(sources=sources), "--to", "select")
    assert "but all-rights-reserved by the near copy in the last build" in refused("publish", lent.first, *public)


# ---- what lies among the releases


@pytest.mark.parametrize("place", ["", "/inside", "/../copy"])
def test_a_release_is_not_published_among_the_sealed_ones(lent: Lent, place: str) -> None:
    before = hash_tree(lent.work / "releases")
    refused("publish", lent.work, "--to", f"{lent.first}{place}")
    assert hash_tree(lent.work / "releases") == before


@pytest.mark.parametrize("file", ["report.html", pytest.param("release.json", marks=pytest.mark.slow)])
def test_a_build_does_not_hand_over_a_release_that_was_damaged(lent: Lent, file: str) -> None:
    before = hash_tree(lent.first)
    part(lent.first / file).write_text("{")
    for said in (refused("build", lent.path), refused("export", lent.work, "--for", "dalip")):
        assert "`plantmix repair WORKDIR` makes it again" in said
    done("repair", lent.work)
    assert hash_tree(lent.first) == before
    done("build", lent.path)


def test_repair_makes_again_what_needs_no_source_while_the_source_is_away(lent: Lent) -> None:
    (lent.folder / "pics").rename(lent.folder / "away")
    before = hash_tree(lent.first)
    for lost in ("releases/*/shards/*.tar", "tables/select/*.parquet", "tables/mix/*.parquet"):
        part(sorted(lent.work.glob(lost))[0]).unlink()
    done("repair", lent.work, lent.path)
    assert hash_tree(lent.first) == before
    assert "are as recorded" in done("verify", lent.work, "--deep")


def test_repair_names_the_source_that_it_has_to_wait_for(lent: Lent) -> None:
    (lent.folder / "pics").rename(lent.folder / "away")
    before = hash_tree(lent.first)
    part(lent.work / "status.json").write_text("{")
    for damaged in ("pool/*.tar", "tables/select/*.parquet"):
        part(sorted(lent.work.glob(damaged))[0]).unlink()
    said = refused("repair", lent.work, lent.path)
    assert "not made again, because its inputs cannot be read:" in said
    assert f"fetch: sources.plant: {lent.folder}/pics/plant: no such folder" in said
    assert json.loads((lent.work / "status.json").read_text())
    (lent.folder / "away").rename(lent.folder / "pics")
    done("repair", lent.work, lent.path)
    assert hash_tree(lent.first) == before


def test_the_name_of_a_mixture_file_decides_nothing(lent: Lent) -> None:
    mixture, renamed = lent.folder / "a.json", lent.folder / "b.json"
    mixture.write_text(json.dumps({"ratio": {"plant": 0.5, "general": 0.5}}))
    done("mix", lent.config(mix={"mixture": str(mixture), "seed": 1}))
    first = release_of(lent.work)
    mixture.rename(renamed)
    done("mix", lent.config(mix={"mixture": str(renamed), "seed": 1}))
    assert release_of(lent.work) == first


def test_names_of_files_and_modules_decide_nothing(lent: Lent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release is known by what its backbone and its scorer hold."""
    monkeypatch.syspath_prepend(str(lent.folder))

    def named(name: str) -> Path:
        importlib.invalidate_caches()
        plugin = {"name": "length", "scorer": f"{name}:Lengths", "options": {"words": f"{lent.folder}/{name}.txt"}}
        backbone = {"path": str(lent.folder / f"{name}.zip")}
        return lent.config(score={"plugins": [plugin]}, caption={"backbone": backbone})

    code = (ROOT / "tests/scorer_of_lengths.py").read_text()
    takes_words = "    def __init__(self, words: str) -> None:\n        pass\n\n    def load("
    (lent.folder / "first.py").write_text(code.replace("    def load(", takes_words))
    (lent.folder / "first.txt").write_text("words")
    with zipfile.ZipFile(lent.folder / "first.zip", "w") as archive:
        archive.writestr("Taxon.tsv", "taxonID\tscientificName\ttaxonRank\ttaxonomicStatus\n1\tIris\tgenus\taccepted\n")
    done("build", named("first"))
    sealed = release_of(lent.work)
    for ending in ("py", "txt", "zip"):
        (lent.folder / f"first.{ending}").rename(lent.folder / f"second.{ending}")
    done("build", named("second"))
    assert release_of(lent.work) == sealed
    assert "first" not in json.dumps(json.loads((sealed / "release.json").read_text())["recipe"])
    (lent.folder / "second.txt").write_text("other words")
    done("build", named("second"))
    assert release_of(lent.work) != sealed


# ---- what a command writes over


def write_runs(path: Path) -> Path:
    """A table of proxy runs whose losses follow a law."""
    lines = ["run,seed,mix_plant,mix_general,loss_plant,loss_general"]
    for number, share in enumerate((0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1)):
        losses = 2 + 1 / (0.3 + share), 2 + 1 / (1.35 - share)
        lines.append(f"r{number},0,{share},{1 - share:.3f},{losses[0]:.4f},{losses[1]:.4f}")
    path.write_text("\n".join(lines))
    return path


@pytest.mark.slow
def test_a_command_writes_over_no_file_but_its_own(lent: Lent) -> None:
    runs, law, page = write_runs(lent.folder / "runs.csv"), lent.folder / "law.json", lent.folder / "page.html"
    aims = ["--objective", "plant=1,general=1", "--out"]
    done("plan", "fit", runs, "--out", law)
    files = {path: path.read_bytes() for path in (runs, law, lent.path, lent.first / "samples.parquet")}
    refused("plan", "fit", runs, "--out", runs)
    refused("plan", "fit", runs, "--out", lent.path)
    refused("plan", "choose", law, *aims, law)
    refused("plan", "design", "--runs", runs, "--budget", "2", "--out", runs)
    refused("report", lent.work, "--out", runs)
    refused("report", lent.work, "--out", lent.first / "samples.parquet")
    refused("report", lent.work, "--out", lent.first / "more.html")
    assert {path: path.read_bytes() for path in files} == files
    for _ in range(2):  # what it wrote itself is replaced
        done("plan", "fit", runs, "--out", law)
        done("plan", "choose", law, *aims, lent.folder / "mixture.json", "--plot", lent.folder / "choice.png")
        done("plan", "design", "--domains", "plant,general", "--budget", "4", "--out", lent.folder / "design.csv")
        done("report", lent.work, "--out", page)
    page.write_text("<!doctype html> mine")
    refused("plan", "choose", law, *aims, lent.folder / "other.json", "--plot", page)
    assert not (lent.folder / "other.json").exists()


# ---- plans


@pytest.mark.slow
def test_a_difference_of_two_releases_names_another_choice_in_the_same_file(lent: Lent) -> None:
    law, mixture = lent.folder / "law.json", lent.folder / "mixture.json"
    done("plan", "fit", write_runs(lent.folder / "runs.csv"), "--out", law)
    releases = []
    for objective in ("plant=1,general=1", "plant=3,general=1"):
        done("plan", "choose", law, "--objective", objective, "--samples", "8", "--out", mixture)
        done("mix", lent.config(mix={"mixture": str(mixture)}))
        releases.append(release_of(lent.work))
    changes = {row["setting"]: row for row in json.loads(done("diff", "--json", *releases))["recipe"]}
    assert set(changes) == {"mix.mixture.ratio.plant", "mix.mixture.ratio.general"}
    ratio = changes["mix.mixture.ratio.plant"]
    assert ratio["before"] < 0.6 < ratio["after"]


def test_an_image_of_an_older_release_is_not_called_unknown(lent: Lent) -> None:
    """Its source does not name it any more."""
    row = next(row for row in lent.samples(lent.first) if row["sample_id"] == lent.some_id)
    for file in (lent.folder / "pics" / row["domain"]).glob("*.txt"):
        if file.read_text() == row["text"]:
            file.unlink()
            file.with_suffix(".jpg").unlink()
    done("build", lent.path, "--to", "ingest")
    assert f"but its release {lent.first.name} holds it" in refused("explain", lent.work, lent.some_id)
